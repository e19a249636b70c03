"""The tiny models and method configurations that the parity scripts share."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from peft import AdaLoraConfig, IA3Config, LoraConfig, PrefixTuningConfig, PromptTuningConfig
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

VIRTUAL_TOKENS = 3
VOCABULARY = 100


@dataclass
class Base:
    """A tiny base model, the batch it is run on and the names of its linear layers."""

    name: str
    make: Callable
    task: str
    lengths: list[int]
    labels: list | None = None
    pair: bool = False
    methods: list[str] = field(default_factory=list)


def bert(num_labels: int):
    """A BERT classifier (`num_labels` > 1) or regressor (1)."""
    return lambda: BertForSequenceClassification(
        BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=64,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            num_labels=num_labels,
        )
    )


def decoder(model_class, config_class, **changes):
    """A decoder of the Llama family; `changes` override the tiny configuration."""
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    } | changes
    return lambda: model_class(config_class(**settings))


def scaled_llama(**rope):
    """A still smaller Llama whose rotary embedding is scaled as `rope` says; forward only."""
    return decoder(
        LlamaForCausalLM,
        LlamaConfig,
        vocab_size=60,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        tie_word_embeddings=True,
        max_position_embeddings=rope.pop("max_position_embeddings", 64),
        rope_parameters={"rope_theta": 10000.0, **rope},
    )


BERT_LENGTHS, TEXT_LENGTHS = [12, 7, 16, 4], [14, 9, 20, 5]
PEFT_METHODS = ["lora", "lora_patterns", "ia3", "prompt_tuning", "prefix_tuning", "prefix_tuning_mlp"]

BASES = [
    Base(
        "bert",
        bert(3),
        "SEQ_CLS",
        BERT_LENGTHS,
        labels=[0, 2, 1, 2],
        pair=True,
        methods=[*PEFT_METHODS, "adalora", "ia3_paper", "full", "bitfit", "bitfit_subset", "freeze"],
    ),
    Base("bert_regression", bert(1), "SEQ_CLS", BERT_LENGTHS, labels=[0.4, 2.5, -1.0, 3.75], methods=["lora", "bitfit"]),
    Base("llama", decoder(LlamaForCausalLM, LlamaConfig), "CAUSAL_LM", TEXT_LENGTHS, methods=[*PEFT_METHODS, "adalora", "full", "freeze"]),
    Base(
        "llama_tied",
        decoder(LlamaForCausalLM, LlamaConfig, tie_word_embeddings=True),
        "CAUSAL_LM",
        TEXT_LENGTHS,
        methods=["lora", "full"],
    ),
    Base(
        "llama_classifier",
        decoder(LlamaForSequenceClassification, LlamaConfig, num_labels=3),
        "SEQ_CLS",
        TEXT_LENGTHS,
        labels=[0, 2, 1, 2],
        methods=["lora", "ia3", "prompt_tuning", "prefix_tuning"],
    ),
    Base(
        "qwen2",
        decoder(Qwen2ForCausalLM, Qwen2Config, tie_word_embeddings=True),
        "CAUSAL_LM",
        TEXT_LENGTHS,
        methods=["lora", "ia3", "prefix_tuning", "bitfit"],
    ),
    Base(
        "mistral",
        decoder(MistralForCausalLM, MistralConfig, sliding_window=8),
        "CAUSAL_LM",
        TEXT_LENGTHS,
        methods=["lora", "prompt_tuning", "prefix_tuning"],
    ),
    Base(
        "llama_rope_llama3",
        scaled_llama(
            rope_type="llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=16,
        ),
        "CAUSAL_LM",
        TEXT_LENGTHS,
    ),
    Base("llama_rope_linear", scaled_llama(rope_type="linear", factor=4.0), "CAUSAL_LM", TEXT_LENGTHS),
    Base(
        "llama_rope_dynamic",
        scaled_llama(rope_type="dynamic", factor=2.0, max_position_embeddings=8),
        "CAUSAL_LM",
        TEXT_LENGTHS,
    ),
    Base(
        "llama_rope_yarn",
        scaled_llama(rope_type="yarn", factor=4.0, original_max_position_embeddings=16),
        "CAUSAL_LM",
        TEXT_LENGTHS,
    ),
]


def seeded(*names: str) -> torch.Generator:
    """A generator that depends on the names alone, so that adding a case moves no other."""
    return torch.Generator().manual_seed(zlib.crc32("/".join(names).encode()))


def randomise(named_parameters, generator: torch.Generator) -> None:
    """Values as if trained: no zero bias, no unit norm, nothing at its initial value."""
    with torch.no_grad():
        for name, value in named_parameters:
            noise = torch.randn(value.shape, generator=generator)
            if "norm" in name.lower() and name.endswith("weight") or "ia3_l" in name:
                value.copy_(1.0 + 0.2 * noise)
            elif "embed" in name or "prompt_encoder" in name and "transform" not in name:
                value.copy_(0.5 * noise)
            else:
                value.copy_(0.15 * noise)


def peft_config(base: Base, method: str):
    """PEFT's configuration of a method, or None for a method that PEFT lacks."""
    is_bert = base.name.startswith("bert")
    attention = ["query", "value"] if is_bert else ["q_proj", "v_proj"]
    common = {"task_type": base.task}
    match method:
        case "lora":
            return LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=attention, **common)
        case "lora_patterns":
            first, second = ("attention.self.query", "output.dense") if is_bert else ("self_attn.q_proj", "down_proj")
            return LoraConfig(
                r=4,
                lora_alpha=8,
                lora_dropout=0.0,
                use_rslora=True,
                target_modules="all-linear",
                rank_pattern={first: 2, second: 6},
                alpha_pattern={rf"layers?\.1\..*{second}": 3},
                **common,
            )
        case "adalora":
            return AdaLoraConfig(
                init_r=4, target_r=2, lora_alpha=8, tinit=1, tfinal=1, total_step=10, target_modules=attention, **common
            )
        case "ia3":
            ff = ["output.dense"] if is_bert else ["down_proj"]
            targets = (["key", "value"] if is_bert else ["k_proj", "v_proj"]) + ff
            return IA3Config(target_modules=targets, feedforward_modules=ff, **common)
        case "ia3_paper":
            ff = r".*layer\.\d+\.output\.dense"
            return IA3Config(target_modules=rf".*\.(key|value)|{ff}", feedforward_modules=ff, **common)
        case "prompt_tuning":
            return PromptTuningConfig(num_virtual_tokens=VIRTUAL_TOKENS, **common)
        case "prefix_tuning":
            return PrefixTuningConfig(num_virtual_tokens=VIRTUAL_TOKENS, **common)
        case "prefix_tuning_mlp":
            return PrefixTuningConfig(
                num_virtual_tokens=VIRTUAL_TOKENS, prefix_projection=True, encoder_hidden_size=8, **common
            )
    return None
