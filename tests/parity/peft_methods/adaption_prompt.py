"""Adaption prompts (LLaMA-Adapter)."""

from peft import AdaptionPromptConfig

from .case import Case


def adaption_prompt(base, common):
    # The first base has a prompt in its upper layer only.
    return AdaptionPromptConfig(adapter_len=4, adapter_layers=1 if base.name == "llama" else 2, **common)


def prompts(name, noise):
    if "adaption_gate" in name:
        return 0.5 + 0.2 * noise
    return 0.5 * noise if "adaption_prompt" in name else None


CASES = {"adaption_prompt": Case(adaption_prompt, bases=("llama", "mistral", "gpt2"), value=prompts)}
