"""BEFT."""

from peft import BeftConfig

from .case import Case


def beft(base, common):
    return BeftConfig(target_modules=[*base.names.lora, *base.names.ia3_feedforward], **common)


CASES = {"beft": Case(beft, bases=("bert", "llama"))}
