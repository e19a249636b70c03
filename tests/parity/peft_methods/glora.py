"""GLoRA."""

from peft import GloraConfig

from .case import Case


def glora(base, common):
    return GloraConfig(r=3, target_modules=base.names.lora, **common)


def glora_vectors(base, common):
    return GloraConfig(
        config_A_B="vector", config_C="vector", config_D_E="vector", target_modules=base.names.ia3_feedforward, **common
    )


def glora_constants(base, common):
    return GloraConfig(config_A_B="constant", config_C="none", config_D_E="constant", target_modules=base.names.lora, **common)


CASES = {
    "glora": Case(glora, bases=("bert", "llama"), frozen=(".zeros",)),
    "glora_vectors": Case(glora_vectors, bases=("bert",), frozen=(".zeros",)),
    "glora_constants": Case(glora_constants, bases=("bert",), frozen=(".zeros",)),
}
