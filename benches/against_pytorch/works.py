"""The works that are measured, with the goals that issue 3 set for them. Imports nothing heavy: the driver reads it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """One row of the table: a model shape, a method and a batch."""

    model: str
    method: str
    rows: int
    length: int
    dtypes: tuple[str, ...] = ("f32",)
    throughput_goal: dict[str, float] | float = 1.8
    memory_goal: float = 0.5

    def goal(self, dtype: str) -> float:
        """How many times PyTorch's throughput is wanted in this precision."""
        return self.throughput_goal[dtype] if isinstance(self.throughput_goal, dict) else self.throughput_goal


# Shapes by Hugging Face's configuration keys; the models have random weights.
BERT_BASE = {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
MINILM = {"num_hidden_layers": 6, "hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536}
LLAMA_HALF_BILLION = {
    "num_hidden_layers": 24,
    "hidden_size": 896,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "intermediate_size": 4864,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
SHAPES = {"bert-base": BERT_BASE, "minilm": MINILM, "llama-0.5b": LLAMA_HALF_BILLION}

BOTH = ("f32", "bf16")
WORKS = {
    "bert-base-lora": Work("bert-base", "lora", 16, 128, BOTH, {"f32": 2.2, "bf16": 1.7}, 0.33),
    "llama-0.5b-lora": Work("llama-0.5b", "lora", 4, 128, BOTH, {"f32": 2.2, "bf16": 1.8}, 0.45),
    # Real text of unequal length: batches of 32 rows in the order of the file given with --data.
    "minilm-lora-mrpc": Work("minilm", "lora", 32, 0, ("f32",), 3.0, 0.33),
    "bert-base-full": Work("bert-base", "full", 16, 128),
    "bert-base-bitfit": Work("bert-base", "bitfit", 16, 128),
    "bert-base-houlsby": Work("bert-base", "houlsby", 16, 128),
    "bert-base-prefix": Work("bert-base", "prefix-tuning", 16, 128),
    "bert-base-ia3": Work("bert-base", "ia3", 16, 128),
}
