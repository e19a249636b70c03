"""PEANuT."""

from peft import PeanutConfig

from .case import Case


def peanut(base, common):
    return PeanutConfig(r=4, depth=2, act_fn="gelu", scaling=0.5, target_modules=base.names.lora, **common)


def peanut_flat(base, common):
    return PeanutConfig(r=4, target_modules=base.names.ia3_feedforward, **common)


CASES = {"peanut": Case(peanut, bases=("bert",)), "peanut_flat": Case(peanut_flat, bases=("llama",))}
