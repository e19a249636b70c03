"""SHiRA."""

from peft import ShiraConfig

from .case import Case


def shira(base, common):
    return ShiraConfig(r=2, target_modules=base.names.lora, **common)


def shira_seed(base, common):
    return ShiraConfig(r=1, random_seed=5, target_modules=base.names.lora, **common)


INDICES = ("shira_indices",)
CASES = {
    "shira": Case(shira, bases=("llama",), frozen=INDICES),
    "shira_seed": Case(shira_seed, bases=("bert",), frozen=INDICES),
}
