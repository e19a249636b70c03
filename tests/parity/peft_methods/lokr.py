"""LoKr."""

from peft import LoKrConfig

from .case import Case


def lokr(base, common):
    return LoKrConfig(r=8, alpha=8, target_modules=base.names.lora, **common)


def lokr_both(base, common):
    return LoKrConfig(
        r=1,
        alpha=2,
        decompose_both=True,
        decompose_factor=4,
        rank_dropout_scale=True,
        init_weights="lycoris",
        target_modules=base.names.lora + base.names.ia3_feedforward,
        **common,
    )


def factors(name, noise):
    return 0.4 * noise if "lokr_" in name else None


CASES = {
    "lokr": Case(lokr, bases=("bert",), value=factors),
    "lokr_both": Case(lokr_both, bases=("llama",), value=factors),
}
