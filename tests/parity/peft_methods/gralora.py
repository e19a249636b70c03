"""GraLoRA."""

from peft import GraloraConfig

from .case import Case


def gralora(base, common):
    return GraloraConfig(r=4, alpha=8, gralora_k=2, target_modules=base.names.lora, **common)


def gralora_hybrid(base, common):
    return GraloraConfig(r=4, hybrid_r=2, alpha=8, gralora_k=4, target_modules=base.names.ia3_feedforward, **common)


CASES = {"gralora": Case(gralora, bases=("gpt2",)), "gralora_hybrid": Case(gralora_hybrid, bases=("bert",))}
