"""Super-Tuning and Supra."""

from peft import SupertuningConfig

from .case import Case


def super_tuning(base, common):
    return SupertuningConfig(sparsity=0.9, target_modules=base.names.lora, **common)


def supra(base, common):
    return SupertuningConfig(
        sparsity=0.9,
        select_top=False,
        r=2,
        save_precomputed_indices=False,
        target_modules=base.names.ia3_feedforward,
        **common,
    )


CASES = {
    "super_tuning": Case(super_tuning, bases=("bert",), frozen=("supertuning_indices",)),
    "supra": Case(supra, bases=("llama",)),
}
