"""Writes golden/config.json: how transformers reads some `config.json` files.

    python crates/models/tests/make_config_golden.py

Made with transformers 5.23. Every case is an input and the attributes of the configuration object
that transformers makes of it, under the names that epiphyte-models uses.
"""

import json
from pathlib import Path

from transformers import AutoConfig

CASES = [
    {"model_type": "bert"},
    {"model_type": "bert", "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12,
     "intermediate_size": 1536, "hidden_act": "gelu_new", "classifier_dropout": 0.2,
     "layer_norm_eps": 1e-5, "pad_token_id": None, "num_labels": 5,
     "problem_type": "multi_label_classification"},
    {"model_type": "bert", "id2label": {"0": "no", "1": "yes", "2": "maybe"},
     "label2id": {"no": 0, "yes": 1, "maybe": 2}, "num_labels": 7, "a_key_of_tomorrow": [1, 2]},
    {"model_type": "llama"},
    {"model_type": "llama", "num_key_value_heads": None, "head_dim": 64, "attention_bias": True,
     "mlp_bias": True, "tie_word_embeddings": True, "eos_token_id": [3, 4], "bos_token_id": None,
     "rope_theta": 500000.0, "attention_dropout": 0.1, "pretraining_tp": 1, "num_labels": 1},
    {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 4,
     "vocab_size": 512, "rope_parameters": {"rope_type": "default", "rope_theta": 20000.0},
     "rope_theta": 30000.0},
    {"model_type": "mistral"},
    {"model_type": "mistral", "sliding_window": None, "num_hidden_layers": 3, "attention_bias": True},
    {"model_type": "mistral", "sliding_window": 16, "num_hidden_layers": 3, "head_dim": 96},
    {"model_type": "qwen2"},
    {"model_type": "qwen2", "hidden_size": 896, "num_attention_heads": 14, "num_key_value_heads": 2,
     "num_hidden_layers": 4, "use_sliding_window": True, "max_window_layers": 3, "sliding_window": 32,
     "rope_theta": 1000000.0, "tie_word_embeddings": True, "eos_token_id": 151645},
    {"model_type": "qwen2", "num_hidden_layers": 3, "use_sliding_window": True, "sliding_window": 8,
     "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    {"model_type": "qwen3"},
    {"model_type": "qwen3", "num_hidden_layers": 4, "use_sliding_window": True, "max_window_layers": 3,
     "attention_bias": True, "rope_theta": 1000000.0},
    {"model_type": "gemma"},
    {"model_type": "gemma", "hidden_act": "gelu", "hidden_size": 64, "num_hidden_layers": 2},
    {"model_type": "gemma2"},
    {"model_type": "gemma2", "num_hidden_layers": 3, "attn_logit_softcapping": None, "hidden_size": 64,
     "final_logit_softcapping": 5.0, "query_pre_attn_scalar": 144, "sliding_window": 32},
    {"model_type": "gemma3_text"},
    {"model_type": "gemma3_text", "num_hidden_layers": 4, "sliding_window_pattern": 2, "rope_theta": 2000000.0,
     "rope_local_base_freq": 20000.0, "sliding_window": 16},
    {"model_type": "gemma3_text", "num_hidden_layers": 2, "layer_types": ["full_attention", "sliding_attention"],
     "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 3000000.0},
                         "sliding_attention": {"rope_type": "default", "rope_theta": 30000.0}}},
    {"model_type": "gemma3_text", "num_hidden_layers": 2, "layer_types": ["full_attention", "sliding_attention"],
     "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 3000000.0},
                         "sliding_attention": {"rope_type": "default", "rope_theta": 30000.0}},
     "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rope_theta": 5000000.0},
    {"model_type": "phi3"},
    {"model_type": "phi3", "partial_rotary_factor": 0.75, "num_key_value_heads": 8, "sliding_window": 64,
     "num_hidden_layers": 2, "hidden_size": 4096},
    {"model_type": "smollm3"},
    {"model_type": "smollm3", "num_hidden_layers": 3, "no_rope_layers": [1, 1, 0], "use_sliding_window": True,
     "sliding_window": 8, "attention_bias": True, "mlp_bias": True},
    {"model_type": "olmo2"},
    {"model_type": "glm"},
    {"model_type": "glm", "partial_rotary_factor": 0.25, "attention_bias": False, "eos_token_id": 7},
    {"model_type": "glm4"},
    {"model_type": "gpt_neox"},
    {"model_type": "gpt_neox", "rotary_pct": 0.5, "rotary_emb_base": 20000, "attention_bias": False},
    {"model_type": "gpt_neox", "rope_theta": 20000.0, "partial_rotary_factor": 0.5},
    {"model_type": "gpt_neox", "rope_parameters": {"rope_type": "default", "rope_theta": 30000.0,
                                                   "partial_rotary_factor": 1.0}},
    {"model_type": "opt"},
    {"model_type": "opt", "ffn_dim": 96, "activation_function": "gelu", "hidden_size": 48, "init_std": 0.01},
]

COMMON = ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
          "max_position_embeddings", "pad_token_id", "problem_type"]
# Keys of which families have their own.
VARIANTS = {
    "intermediate_size": ["ffn_dim"],
    "hidden_act": ["hidden_activation", "activation_function"],
    "initializer_range": ["init_std"],
}
BERT = ["hidden_dropout_prob", "attention_probs_dropout_prob", "type_vocab_size", "layer_norm_eps",
        "classifier_dropout"]
DECODER = ["tie_word_embeddings", "attention_dropout", "bos_token_id"]


def first(config, *keys):
    """The value of the first key that the configuration has."""
    return next(getattr(config, key) for key in keys if hasattr(config, key))


def attributes(case):
    config = AutoConfig.for_model(**json.loads(json.dumps(case)))
    kind = config.model_type
    found = {key: getattr(config, key) for key in COMMON + (BERT if kind == "bert" else DECODER)}
    found |= {key: first(config, key, *others) for key, others in VARIANTS.items()}
    found["labels"] = [config.id2label[i] for i in range(config.num_labels)]
    if kind == "bert":
        return found
    eos = config.eos_token_id
    layers = config.num_hidden_layers
    heads = config.num_attention_heads
    has_windows = kind in ("mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "smollm3")
    window = config.sliding_window if has_windows else None
    types = getattr(config, "layer_types", None) or ["sliding_attention"] * layers
    # As the attention classes use them: modeling_*.py.
    always = kind in ("qwen2", "opt")
    bias = always or kind not in ("mistral", "phi3") and config.attention_bias
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    rope = getattr(config, "rope_parameters", None)
    ropes = [rope[key] for key in ("full_attention", "sliding_attention")] if kind == "gemma3_text" else [rope]
    ropes = [] if rope is None else ropes
    rotates = getattr(config, "no_rope_layers", [1] * layers)
    if kind == "gemma3_text":
        rope_of_layers = [int(it == "sliding_attention") for it in types]
    else:
        rope_of_layers = [0 if ropes and it else None for it in rotates]
    return found | {
        "head_dim": head_dim,
        "num_key_value_heads": getattr(config, "num_key_value_heads", heads),
        # OPT has PyTorch's default.
        "norm_eps": 1e-5 if kind == "opt" else first(config, "rms_norm_eps", "layer_norm_eps"),
        "rope_thetas": [float(it["rope_theta"]) for it in ropes],
        "rope_factors": [it.get("factor") if it["rope_type"] == "linear" else None for it in ropes],
        "rotary_dims": [int(head_dim * it.get("partial_rotary_factor", 1.0)) for it in ropes],
        "rope_of_layers": rope_of_layers,
        "attention_scale": getattr(config, "query_pre_attn_scalar", head_dim) ** -0.5,
        "softcaps": [getattr(config, f"{of}_logit_softcapping", None) for of in ("attn", "final")],
        "eos_token_ids": eos if isinstance(eos, list) else [] if eos is None else [eos],
        "sliding_windows": [window if it == "sliding_attention" else None for it in types],
        "qkv_bias": bias,
        "attention_output_bias": bias and kind not in ("qwen2", "glm", "glm4"),
        "mlp_bias": kind in ("gpt_neox", "opt") or getattr(config, "mlp_bias", False),
    }


def main():
    lines = [json.dumps({"config": case, "expected": attributes(case)}) for case in CASES]
    path = Path(__file__).parent / "golden" / "config.json"
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    main()
