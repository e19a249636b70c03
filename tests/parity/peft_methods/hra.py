"""HRA."""

from peft import HRAConfig

from .case import Case


def hra(base, common):
    return HRAConfig(r=4, target_modules=base.names.lora, **common)


def hra_orthogonal(base, common):
    return HRAConfig(r=3, apply_GS=True, init_weights=False, target_modules=base.names.lora, **common)


CASES = {"hra": Case(hra, bases=("bert",)), "hra_orthogonal": Case(hra_orthogonal, bases=("llama",))}
