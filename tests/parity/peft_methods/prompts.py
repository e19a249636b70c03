"""Prompt tuning and prefix tuning."""

from peft import PrefixTuningConfig, PromptTuningConfig

from .case import Case

VIRTUAL_TOKENS = 3


def prompt_tuning(base, common):
    # Of an encoder-decoder's two prompts PEFT uses the encoder's only.
    submodules = {"num_transformer_submodules": 1} if base.task == "SEQ_2_SEQ_LM" else {}
    return PromptTuningConfig(num_virtual_tokens=VIRTUAL_TOKENS, **submodules, **common)


def prefix_tuning(_base, common):
    return PrefixTuningConfig(num_virtual_tokens=VIRTUAL_TOKENS, **common)


def prefix_tuning_mlp(_base, common):
    return PrefixTuningConfig(
        num_virtual_tokens=VIRTUAL_TOKENS, prefix_projection=True, encoder_hidden_size=8, **common
    )


def embeddings(name, noise):
    return 0.5 * noise if "prompt_encoder" in name and "transform" not in name else None


CASES = {
    "prompt_tuning": Case(prompt_tuning, value=embeddings),
    "prefix_tuning": Case(prefix_tuning, bases=("bart",), value=embeddings),
    "prefix_tuning_mlp": Case(prefix_tuning_mlp, value=embeddings, folds=True),
}
