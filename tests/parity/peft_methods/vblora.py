"""VB-LoRA."""

from peft import VBLoRAConfig

from .case import Case


def vblora(base, common):
    return VBLoRAConfig(r=2, num_vectors=10, vector_length=8, topk=3, target_modules=base.names.lora, **common)


CASES = {"vblora": Case(vblora, bases=("bert", "gpt2"), shared=("vblora_vector_bank",))}
