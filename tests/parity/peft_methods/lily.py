"""Lily."""

from peft import LilyConfig

from .case import Case


def lily(base, common):
    return LilyConfig(r=3, stride_A=2, num_B=3, scaling=0.5, target_modules=base.names.lora, **common)


# What the second layer shares with the first.
SHARED = tuple(f"layer.1.attention.self.{name}.lily_{matrix}.weight" for name in ("query", "value") for matrix in "AB")
CASES = {"lily": Case(lily, bases=("bert",), frozen=SHARED, alone=True)}
