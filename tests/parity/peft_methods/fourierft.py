"""FourierFT."""

from peft import FourierFTConfig

from .case import Case


def fourierft(base, common):
    return FourierFTConfig(n_frequency=50, target_modules=base.names.lora, **common)


def fourierft_patterns(base, common):
    _, second = base.names.lora
    return FourierFTConfig(
        n_frequency=30,
        scaling=80.0,
        random_loc_seed=5,
        n_frequency_pattern={second: 20},
        init_weights=True,
        target_modules=base.names.lora,
        **common,
    )


CASES = {
    "fourierft": Case(fourierft, bases=("gpt2",)),
    "fourierft_patterns": Case(fourierft_patterns, bases=("bert",)),
}
