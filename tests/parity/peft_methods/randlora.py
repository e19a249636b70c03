"""RandLoRA."""

from peft import RandLoraConfig

from .case import Case


def randlora(base, common):
    return RandLoraConfig(r=5, randlora_alpha=4, target_modules=base.names.lora, **common)


def randlora_from_key(base, common):
    return RandLoraConfig(
        r=8, randlora_alpha=4, projection_prng_key=3, save_projection=False, target_modules=base.names.lora, **common
    )


def randlora_sparse(base, common):
    return RandLoraConfig(
        r=8, randlora_alpha=4, sparse=True, save_projection=False, target_modules=base.names.lora, **common
    )


BASES = ("randlora_A", "randlora_B")
CASES = {
    "randlora": Case(randlora, bases=("llama",), frozen=BASES),
    "randlora_from_key": Case(randlora_from_key, bases=("gpt2",), frozen=BASES),
    "randlora_sparse": Case(randlora_sparse, bases=("bert",), frozen=BASES),
}
