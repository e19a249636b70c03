"""DEFT and PaRa."""

from peft import DeftConfig

from .case import Case


def deft(base, common):
    return DeftConfig(r=3, alpha=6, target_modules=base.names.lora, **common)


def deft_qr(base, common):
    return DeftConfig(r=4, decomposition_method="qr", target_modules=base.names.ia3_feedforward, **common)


def para(base, common):
    return DeftConfig(r=3, decomposition_method="qr", para=True, target_modules=base.names.lora, **common)


CASES = {
    "deft": Case(deft, bases=("bert", "gpt2")),
    "deft_qr": Case(deft_qr, bases=("bert", "gpt2")),
    "para": Case(para, bases=("llama",)),
}
