"""DeLoRA."""

from peft import DeloraConfig

from .case import Case


def delora(base, common):
    return DeloraConfig(r=4, delora_lambda=2, target_modules=base.names.lora, **common)


def delora_patterns(base, common):
    first, second, second_in_layer = base.names.patterns
    ranks, strengths = {second: 2}, {second_in_layer: 3}
    return DeloraConfig(
        r=3, rank_pattern=ranks, lambda_pattern=strengths, init_weights=False, target_modules=[first, second], **common
    )


def strengths(name, noise):
    return 1.0 + 0.2 * noise if "delora_lambda" in name else None


NORMS = ("delora_w_norm",)
CASES = {
    "delora": Case(delora, bases=("llama",), frozen=NORMS, value=strengths),
    "delora_patterns": Case(delora_patterns, bases=("bert",), frozen=NORMS, value=strengths),
}
