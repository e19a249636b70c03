"""FRoD."""

from peft import FrodConfig

from .case import Case


def frod(base, common):
    return FrodConfig(sparse_rate=0.05, target_modules=base.names.lora, **common)


KINDS = ("self_query", "self_value", "attn_c_attn")
FROZEN = tuple(f"frod_{name}.{kind}" for name in ("V", "s_indices", "s_size") for kind in KINDS)
CASES = {"frod": Case(frod, bases=("bert", "gpt2"), frozen=FROZEN)}
