"""WaveFT."""

from peft import WaveFTConfig

from .case import Case


def waveft(base, common):
    return WaveFTConfig(n_frequency=50, scaling=3.0, target_modules=base.names.lora, **common)


def waveft_coiflet(base, common):
    # Shares by size, and a filter that is longer than one of the shortest wavelet.
    return WaveFTConfig(
        n_frequency=40,
        scaling=3.0,
        wavelet_family="coif1",
        proportional_parameters=True,
        target_modules=base.names.lora + base.names.ia3_feedforward,
        **common,
    )


def waveft_entries(base, common):
    return WaveFTConfig(
        n_frequency=50, scaling=3.0, use_idwt=False, random_loc_seed=5, target_modules=base.names.lora, **common
    )


CASES = {
    "waveft": Case(waveft, bases=("bert",)),
    "waveft_coiflet": Case(waveft_coiflet, bases=("llama",)),
    "waveft_entries": Case(waveft_entries, bases=("gpt2",)),
}
