"""PSOFT."""

from peft import PsoftConfig

from .case import Case


def psoft(base, common):
    return PsoftConfig(r=4, psoft_alpha=8, target_modules=base.names.lora, **common)


def psoft_series(base, common):
    return PsoftConfig(
        r=3,
        ab_svd_init="pissa_init",
        use_cayley_neumann=True,
        cayley_neumann_eps=0.3,
        psoft_mag_a=False,
        target_modules=base.names.ia3_feedforward,
        **common,
    )


def factors(model):
    """The singular directions, which PEFT does not store and on whose signs a trained rotation depends."""
    found = {}
    for name, module in model.named_modules():
        if hasattr(module, "_psoft_A_cache"):
            found[f"{name}.psoft_A"] = module._psoft_A_cache["default"]
            found[f"{name}.psoft_B"] = module._psoft_B_cache["default"]
    return found


CASES = {
    "psoft": Case(psoft, bases=("bert",), frozen=("psoft_A", "psoft_B"), extra=factors),
    "psoft_series": Case(psoft_series, bases=("llama",), frozen=("psoft_A", "psoft_B"), extra=factors),
}
