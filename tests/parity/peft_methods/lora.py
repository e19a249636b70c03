"""LoRA and DoRA."""

from peft import LoraConfig
from peft.tuners.lora.config import BdLoraConfig, KasaConfig

from .case import Case


def lora(base, common):
    return LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=base.names.lora, **common)


def lora_patterns(base, common):
    first, second, second_in_layer = base.names.patterns
    return LoraConfig(
        r=4,
        lora_alpha=8,
        lora_dropout=0.0,
        use_rslora=True,
        target_modules="all-linear",
        rank_pattern={first: 2, second: 6},
        alpha_pattern={second_in_layer: 3},
        **common,
    )


def dora(base, common):
    return LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, use_dora=True, target_modules=base.names.lora, **common)


def lora_biases(base, common):
    """A bias of B, and the targets' own biases."""
    targets = ["intermediate.dense", *base.names.lora]
    return LoraConfig(r=2, lora_alpha=6, lora_bias=True, bias="lora_only", target_modules=targets, **common)


def lora_all_biases(base, common):
    return LoraConfig(r=2, bias="all", target_modules=base.names.lora, **common)


def lora_words(base, common):
    """Outside of the layers: the word embeddings and the language model's head."""
    words = "wte" if base.name.startswith("gpt2") else "embed_tokens"
    return LoraConfig(
        r=2, lora_alpha=3, target_modules=[words, "lm_head", base.names.lora[0]], rank_pattern={words: 3}, **common
    )


def lora_pissa(base, common):
    return LoraConfig(r=2, lora_alpha=6, init_lora_weights="pissa", target_modules=base.names.lora, **common)


def lora_olora(base, common):
    return LoraConfig(r=3, lora_alpha=6, init_lora_weights="olora", target_modules=base.names.lora, **common)


def lora_mica(base, common):
    return LoraConfig(r=2, lora_alpha=6, init_lora_weights="mica", target_modules=base.names.lora, **common)


def lora_module(base, common):
    """A module that is trained whole."""
    common = common | {"modules_to_save": ["pooler" if base.task == "SEQ_CLS" else "norm"]}
    return LoraConfig(r=2, target_modules=base.names.lora, **common)


def alora(base, common):
    """Token 79 is twice in the third text, and in no other."""
    return LoraConfig(r=2, lora_alpha=6, alora_invocation_tokens=[79], target_modules=base.names.lora, **common)


def kasa(base, common):
    """Without the penalties, which PEFT leaves to the training loop."""
    penalties = KasaConfig(beta=0.0, gamma=0.0)
    return LoraConfig(r=2, lora_alpha=6, kasa_config=penalties, target_modules=base.names.lora, **common)


def bdlora(_base, common):
    blocks = BdLoraConfig(target_modules_bd_a=["down_proj"], target_modules_bd_b=["q_proj"], nblocks=2)
    return LoraConfig(r=4, lora_alpha=6, use_bdlora=blocks, target_modules=["q_proj", "down_proj"], **common)


def magnitudes(name, noise):
    return 1.0 + 0.2 * noise if "lora_magnitude" in name else None


CASES = {
    "lora": Case(lora),
    "lora_patterns": Case(lora_patterns),
    "lora_biases": Case(lora_biases, bases=("bert",)),
    "lora_all_biases": Case(lora_all_biases, bases=("gpt2",)),
    "lora_words": Case(lora_words, bases=("llama", "gpt2")),
    "lora_pissa": Case(lora_pissa, bases=("bert", "gpt2")),
    "lora_olora": Case(lora_olora, bases=("llama",)),
    "lora_mica": Case(lora_mica, bases=("bert", "gpt2"), frozen=("lora_B.weight",)),
    "lora_module": Case(lora_module, bases=("bert", "llama")),
    "alora": Case(alora, bases=("llama",)),
    "kasa": Case(kasa, bases=("bert",)),
    "bdlora": Case(bdlora, bases=("llama",)),
    "dora": Case(dora, value=magnitudes),
}
