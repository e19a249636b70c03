"""Trainable tokens."""

from peft import TrainableTokensConfig

from .case import Case


def trainable_tokens(_base, common):
    return TrainableTokensConfig(token_indices=list(range(59, 4, -6)), **common)


COPIES = tuple(f"{tied}.trainable_tokens_delta" for tied in ("lm_head", "encoder.embed_tokens", "decoder.embed_tokens"))
CASES = {"trainable_tokens": Case(trainable_tokens, bases=("llama", "llama_tied", "t5"), frozen=COPIES)}
