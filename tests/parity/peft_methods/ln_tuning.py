"""LN tuning."""

from peft import LNTuningConfig

from .case import Case

NORMS = {
    "bert": ["LayerNorm"],
    "llama": ["input_layernorm", "norm", "post_attention_layernorm"],
    "gpt2": ["ln_1", "ln_2", "ln_f"],
}


def ln_tuning(base, common):
    return LNTuningConfig(target_modules=NORMS[base.name], **common)


CASES = {"ln_tuning": Case(ln_tuning, bases=("bert", "llama", "gpt2"))}
