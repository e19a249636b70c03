"""VeRA."""

from peft import VeraConfig

from .case import Case


def vera(base, common):
    # Layers of different shapes, so that the shared matrices are sliced on both sides.
    outward = ["intermediate.dense"] if base.name.startswith("bert") else []
    return VeraConfig(r=4, target_modules=base.names.lora + outward + base.names.ia3_feedforward, **common)


CASES = {"vera": Case(vera, frozen=("vera_A", "vera_B"))}
