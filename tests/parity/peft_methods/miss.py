"""MiSS."""

from peft import MissConfig

from .case import Case


def miss(base, common):
    # A rank that does not divide the inputs.
    return MissConfig(r=5, target_modules=base.names.lora, **common)


def miss_bat(base, common):
    return MissConfig(r=4, init_weights="bat", target_modules=base.names.lora, **common)


def miss_mini(base, common):
    return MissConfig(r=4, mini_r=4, init_weights="mini", target_modules=base.names.lora, **common)


CASES = {
    "miss": Case(miss, bases=("bert",)),
    "miss_bat": Case(miss_bat, bases=("llama",)),
    "miss_mini": Case(miss_mini, bases=("bert",)),
}
