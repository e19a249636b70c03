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
]

COMMON = ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
          "hidden_act", "max_position_embeddings", "pad_token_id", "initializer_range", "problem_type"]
BERT = ["hidden_dropout_prob", "attention_probs_dropout_prob", "type_vocab_size", "layer_norm_eps",
        "classifier_dropout"]
LLAMA = ["num_key_value_heads", "rms_norm_eps", "tie_word_embeddings", "attention_dropout",
         "bos_token_id"]


def attributes(case):
    config = AutoConfig.for_model(**json.loads(json.dumps(case)))
    kind = config.model_type
    found = {key: getattr(config, key) for key in COMMON + (BERT if kind == "bert" else LLAMA)}
    found["labels"] = [config.id2label[i] for i in range(config.num_labels)]
    if kind == "bert":
        return found
    eos = config.eos_token_id
    layers = config.num_hidden_layers
    window = getattr(config, "sliding_window", None) if kind != "llama" else None
    types = config.layer_types if kind == "qwen2" else ["sliding_attention"] * layers
    # As the attention classes use them: modeling_{llama,mistral,qwen2}.py.
    bias = kind == "llama" and config.attention_bias
    return found | {
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        "rope_theta": config.rope_parameters["rope_theta"],
        "eos_token_ids": eos if isinstance(eos, list) else [] if eos is None else [eos],
        "sliding_windows": [window if it == "sliding_attention" else None for it in types],
        "qkv_bias": bias or kind == "qwen2",
        "attention_output_bias": bias,
        "mlp_bias": kind == "llama" and config.mlp_bias,
    }


def main():
    lines = [json.dumps({"config": case, "expected": attributes(case)}) for case in CASES]
    path = Path(__file__).parent / "golden" / "config.json"
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    main()
