"""LoRA and DoRA."""

from peft import LoraConfig

from .case import Case


def lora(base, common):
    return LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=base.names.lora, **common)


def lora_patterns(base, common):
    first, second, second_in_layer = base.names.patterns
    return LoraConfig(
        r=4,
        lora_alpha=8,
        lora_dropout=0.0,
        use_rslora=True,
        target_modules="all-linear",
        rank_pattern={first: 2, second: 6},
        alpha_pattern={second_in_layer: 3},
        **common,
    )


def dora(base, common):
    return LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, use_dora=True, target_modules=base.names.lora, **common)


def magnitudes(name, noise):
    return 1.0 + 0.2 * noise if "lora_magnitude" in name else None


CASES = {"lora": Case(lora), "lora_patterns": Case(lora_patterns), "dora": Case(dora, value=magnitudes)}
