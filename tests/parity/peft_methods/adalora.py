"""AdaLoRA."""

from peft import AdaLoraConfig

from .case import Case


def adalora(base, common):
    return AdaLoraConfig(
        init_r=4, target_r=2, lora_alpha=8, tinit=1, tfinal=1, total_step=10, target_modules=base.names.lora, **common
    )


CASES = {"adalora": Case(adalora)}
