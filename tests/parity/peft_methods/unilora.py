"""Uni-LoRA."""

from peft import UniLoraConfig

from .case import Case


def unilora(base, common):
    return UniLoraConfig(r=3, theta_d_length=100, target_modules=base.names.lora, **common)


def unilora_indices(base, common):
    return UniLoraConfig(r=2, theta_d_length=64, save_indices=True, target_modules=base.names.lora, **common)


INDICES = ("unilora_indices_A", "unilora_indices_B", "unilora_scales_A", "unilora_scales_B")
CASES = {
    # BART and OPT register their layers in another order than that in which they apply them.
    "unilora": Case(unilora, bases=("gpt2", "bart", "opt"), shared=("unilora_theta_d",)),
    "unilora_indices": Case(unilora_indices, bases=("llama",), frozen=INDICES, shared=("unilora_theta_d",)),
}
