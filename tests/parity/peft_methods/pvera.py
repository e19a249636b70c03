"""PVeRA, whose states are means outside of training."""

from peft import PveraConfig

from .case import Case


def pvera(base, common):
    return PveraConfig(r=4, target_modules=base.names.lora + base.names.ia3_feedforward, **common)


def pvera_from_key(base, common):
    return PveraConfig(r=4, projection_prng_key=3, save_projection=False, target_modules=base.names.lora, **common)


MATRICES = ("pvera_A", "pvera_B")
CASES = {
    "pvera": Case(pvera, bases=("llama",), frozen=MATRICES),
    "pvera_from_key": Case(pvera_from_key, bases=("gpt2",), frozen=MATRICES),
}
