"""HiRA."""

from peft import HiraConfig

from .case import Case


def hira(base, common):
    # Unlike other methods this one leaves the setting as it is over `Conv1D`.
    transposed = base.name.startswith("gpt2")
    return HiraConfig(r=4, target_modules=base.names.lora, fan_in_fan_out=transposed, **common)


CASES = {"hira": Case(hira, bases=("bert", "gpt2"))}
