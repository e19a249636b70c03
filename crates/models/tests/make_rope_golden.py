"""Writes golden/rope.json: rotary frequencies and tables as transformers computes them.

    python crates/models/tests/make_rope_golden.py

Made with transformers 5.23 and torch 2.15. For every configuration and sequence length: the inverse
frequencies after a forward pass, the factor on cosines and sines, and both for some positions. All
numbers are f32, printed exactly.
"""

import json
from pathlib import Path

import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

SMALL = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4}  # heads of 16
LONG = {"short_factor": [1.0, 1.05, 1.1, 1.2, 1.3, 1.5, 1.7, 2.0],
        "long_factor": [1.0, 1.5, 2.5, 4.0, 8.0, 16.0, 24.0, 32.0]}

CASES = {
    "default": ({}, [9, 4096]),
    "default, large theta, wide head": ({"head_dim": 64, "rope_theta": 1000000.0}, [33]),
    "rope_parameters of transformers 5": (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}, [9]),
    "linear, old spelling": ({"rope_scaling": {"type": "linear", "factor": 4.0}}, [9, 4096]),
    "dynamic": (
        {"max_position_embeddings": 256, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
        [9, 256, 257, 1000]),
    "llama3": (
        {"head_dim": 64, "max_position_embeddings": 131072, "rope_theta": 500000.0,
         "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                          "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}},
        [9, 20000]),
    "yarn": (
        {"max_position_embeddings": 8192,
         "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}},
        [9, 5000]),
    "yarn, all options": (
        {"max_position_embeddings": 8192, "head_dim": 64,
         "rope_parameters": {"rope_type": "yarn", "rope_theta": 1000000.0, "factor": 4.0,
                             "original_max_position_embeddings": 2048, "attention_factor": 0.7,
                             "beta_fast": 16.0, "beta_slow": 2.0, "truncate": False}},
        [9]),
    "yarn, mscale": (
        {"max_position_embeddings": 8192,
         "rope_scaling": {"type": "yarn", "factor": 40.0, "original_max_position_embeddings": 2048,
                          "mscale": 0.707, "mscale_all_dim": 1.2}},
        [9]),
    "yarn, factor from the lengths": (
        {"max_position_embeddings": 8192,
         "rope_scaling": {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 1024}},
        [9]),
    "longrope": (
        {"max_position_embeddings": 4096,
         "rope_scaling": {"rope_type": "longrope", "factor": 4.0,
                          "original_max_position_embeddings": 1024, **LONG}},
        [9, 1024, 1025]),
    "longrope, lengths outside": (
        {"max_position_embeddings": 4096, "original_max_position_embeddings": 512,
         "rope_scaling": {"type": "longrope", **LONG}},
        [9, 600]),
}


def golden(name, options, length):
    config = LlamaConfig(**json.loads(json.dumps({**SMALL, **options})))
    rotary = LlamaRotaryEmbedding(config)
    positions = sorted({0, 1, 7, length // 2, length - 1})
    cos, sin = rotary(torch.zeros(1), torch.tensor([positions]))
    half = rotary.inv_freq.numel()
    return {
        "name": name,
        "config": {**SMALL, **options},
        "length": length,
        "attention_factor": float(rotary.attention_scaling),
        "inv_freq": rotary.inv_freq.tolist(),
        "positions": positions,
        "cos": cos[0, :, :half].flatten().tolist(),
        "sin": sin[0, :, :half].flatten().tolist(),
    }


def main():
    cases = [golden(name, *case, length)
             for name, (*case, lengths) in CASES.items() for length in lengths]
    path = Path(__file__).parent / "golden" / "rope.json"
    path.write_text("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")


if __name__ == "__main__":
    main()
