"""LoHa."""

from peft import LoHaConfig

from .case import Case


def loha(base, common):
    return LoHaConfig(r=4, alpha=8, target_modules=base.names.lora, **common)


def loha_patterns(base, common):
    first, second, second_in_layer = base.names.patterns
    ranks, alphas = {first: 2, second: 4}, {second_in_layer: 3}
    return LoHaConfig(
        r=3, alpha=4, target_modules=[first, second], rank_pattern=ranks, alpha_pattern=alphas, init_weights=False, **common
    )


def factors(name, noise):
    return 0.4 * noise if "hada_" in name else None


CASES = {
    "loha": Case(loha, bases=("bert", "llama"), value=factors),
    "loha_patterns": Case(loha_patterns, bases=("bert",), value=factors),
}
