"""TinyLoRA."""

from peft import TinyLoraConfig

from .case import Case


def tinylora(base, common):
    return TinyLoraConfig(
        r=3, u=5, weight_tying=0.5, target_modules=[*base.names.lora, *base.names.ia3_feedforward], **common
    )


def tinylora_drawn(base, common):
    return TinyLoraConfig(u=13, save_projection=False, target_modules=base.names.lora, **common)


FROZEN = ("tinylora_A", "tinylora_B", "tinylora_P")
CASES = {
    "tinylora": Case(tinylora, bases=("bert",), frozen=FROZEN, shared=("tinylora_v",)),
    # OPT registers its layers in another order than that in which it applies them.
    "tinylora_drawn": Case(tinylora_drawn, bases=("gpt2", "opt"), frozen=FROZEN, shared=("tinylora_v",)),
}
