"""Multitask prompt tuning; of an encoder-decoder the decoder has a prompt too."""

import torch
from peft import MultitaskPromptTuningConfig

from .case import Case
from .prompts import VIRTUAL_TOKENS


def multitask_prompt_tuning(_base, common):
    return MultitaskPromptTuningConfig(num_virtual_tokens=VIRTUAL_TOKENS, num_tasks=2, num_ranks=2, **common)


CASES = {
    "multitask_prompt_tuning": Case(
        multitask_prompt_tuning,
        bases=("bert", "gpt2", "t5"),
        inputs=lambda rows: {"task_ids": torch.zeros(rows, dtype=torch.long)},
        value=lambda name, noise: 0.5 * noise if "prompt_encoder" in name else None,
    )
}
