"""Poly with one task."""

import torch
from peft import PolyConfig

from .case import Case


def poly(base, common):
    return PolyConfig(r=2, n_skills=3, n_splits=2, target_modules=base.names.lora, **common)


CASES = {"poly": Case(poly, bases=("bert",), inputs=lambda rows: {"task_ids": torch.zeros(rows, dtype=torch.long)})}
