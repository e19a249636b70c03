"""Write golden/gguf: tiny models of llama.cpp's architectures, and what they compute.

PyPI's `gguf` writes the files under the names of its own table, as `convert_hf_to_gguf.py` of
llama.cpp does: queries and keys of Llama in another order, 1 added to Gemma's norms, the divisors
of Llama 3's frequencies. `blocks.gguf` is a Llama whose matrices have each type once, of random
bytes; their values are those of `gguf.quants.dequantize`. Logits are those of transformers' models
with these values, and, where transformers reads the file by itself, of that too.

    python make_gguf_golden.py
"""

import hashlib
import json
import shutil
import tempfile
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGUFWriter, get_tensor_name_map
from gguf.quants import dequantize
from transformers import AutoModelForCausalLM
from transformers import Gemma2Config, Gemma3TextConfig, GemmaConfig, LlamaConfig, Qwen2Config, Qwen3Config

HERE = Path(__file__).parent / "golden" / "gguf"
TOKENS = [3, 17, 5, 9, 21, 2, 2, 30]
SIZES = dict(
    vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    intermediate_size=48, max_position_embeddings=64, head_dim=8, bos_token_id=1, eos_token_id=2, pad_token_id=None,
)  # fmt: skip
LLAMA3 = dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=8192)  # fmt: skip
OTHER = {**LLAMA3, "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 10000.0}
LINEAR = dict(rope_type="linear", factor=2.0, rope_theta=10000.0)
BLOCKS = {**SIZES, "hidden_size": 256, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 32}
CASES = {
    "blocks": (LlamaConfig(**BLOCKS, tie_word_embeddings=False), MODEL_ARCH.LLAMA),
    "llama": (LlamaConfig(**SIZES, rope_parameters=LLAMA3, attention_bias=True), MODEL_ARCH.LLAMA),
    "llama-factors": (LlamaConfig(**SIZES, rope_parameters=OTHER, tie_word_embeddings=True), MODEL_ARCH.LLAMA),
    "llama-linear": (LlamaConfig(**SIZES, rope_parameters=LINEAR), MODEL_ARCH.LLAMA),
    "qwen2": (Qwen2Config(**{k: v for k, v in SIZES.items() if k != "head_dim"}, rms_norm_eps=1e-5), MODEL_ARCH.QWEN2),
    "qwen3": (Qwen3Config(**SIZES, tie_word_embeddings=True), MODEL_ARCH.QWEN3),
    "gemma": (GemmaConfig(**SIZES, tie_word_embeddings=True), MODEL_ARCH.GEMMA),
    "gemma2": (Gemma2Config(**SIZES, query_pre_attn_scalar=8, sliding_window=4), MODEL_ARCH.GEMMA2),
    "gemma3": (Gemma3TextConfig(**{**SIZES, "num_hidden_layers": 6}, query_pre_attn_scalar=8, sliding_window=4), MODEL_ARCH.GEMMA3),
}  # fmt: skip
# transformers reads no `rope_freqs`, scalings, windows or sizes of heads; so the file of all types that it reads has
# larger matrices and is not kept.
READ_TOO = {**BLOCKS, "num_attention_heads": 4, "head_dim": 64}
BY_TRANSFORMERS = {
    "blocks-read-too": (LlamaConfig(**READ_TOO, tie_word_embeddings=False), MODEL_ARCH.LLAMA),
    "qwen2": CASES["qwen2"],
}
# The types of matrices with 256 columns, in the order of their names.
TYPES = [Type.Q5_1, Type.Q4_1, Type.Q6_K, Type.Q2_K, Type.Q3_K, Type.Q4_K, Type.Q4_0, Type.Q5_K, Type.Q8_0, Type.Q5_0,
         Type.BF16, Type.F32]  # fmt: skip
HALVES = {Type.Q4_K: [0, 2], Type.Q5_K: [0, 2], Type.Q2_K: [80, 82], Type.Q3_K: [108], Type.Q6_K: [208], Type.Q4_0: [0],
          Type.Q5_0: [0], Type.Q8_0: [0], Type.Q4_1: [0, 2], Type.Q5_1: [0, 2]}  # fmt: skip


def random_blocks(rng, shape, kind):
    """Random bytes with scales of an ordinary size."""
    values, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (np.prod(shape) // values, size), dtype=np.uint8)
    for at in HALVES[kind]:
        scale = rng.uniform(-1, 1, len(blocks)) / (300 if "_K" in kind.name else 60)
        blocks[:, at : at + 2] = scale.astype(np.float16)[:, None].view(np.uint8)
    return blocks.reshape(*shape[:-1], -1)


def turned(weight, heads):
    """The order in which llama.cpp turns a head's dimensions, as its converter has it."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def turned_back(weight, heads):
    return weight.reshape(heads, weight.shape[0] // heads // 2, 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def metadata(writer, arch, config):
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if hasattr(config, "head_dim") and arch != MODEL_ARCH.QWEN2:
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    rope = config.rope_parameters
    if arch == MODEL_ARCH.GEMMA3:
        writer.add_rope_freq_base(rope["full_attention"]["rope_theta"])
    else:
        writer.add_rope_freq_base(rope["rope_theta"])
        if rope["rope_type"] == "linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(rope["factor"])
    if arch in (MODEL_ARCH.GEMMA2, MODEL_ARCH.GEMMA3):
        writer.add_sliding_window(config.sliding_window)
    if arch == MODEL_ARCH.GEMMA2:
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([f"t{number}" for number in range(config.vocab_size)])
    writer.add_token_types([1] * config.vocab_size)
    writer.add_token_merges([])
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)


def write(case, config, arch, root):
    torch.manual_seed(3)
    rng = np.random.default_rng(5)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    names = get_tensor_name_map(arch, config.num_hidden_layers)
    writer = GGUFWriter(root / "model.gguf", MODEL_ARCH_NAMES[arch])
    metadata(writer, arch, config)
    state = dict(model.state_dict())
    if config.tie_word_embeddings:
        state.pop("lm_head.weight")
    kinds, values = {}, {}
    left = list(TYPES)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name in sorted(state):
        key = names.get_name(name, try_suffixes=(".weight", ".bias"))
        shape = tuple(state[name].shape)
        module = name.split(".")[-2]
        order = heads.get(module) if arch == MODEL_ARCH.LLAMA else None
        if len(shape) == 1:
            value = (1 + rng.normal(size=shape) * 0.2 if "norm" in name else rng.normal(size=shape) * 0.3).astype(np.float32)
            if order:
                writer.add_tensor(key, turned(value, order))
            else:
                writer.add_tensor(key, value)
            if MODEL_ARCH_NAMES[arch].startswith("gemma") and "norm" in name:
                value = value - np.float32(1)
            kinds[name] = Type.F32
        else:
            wide = case.startswith("blocks") and shape[-1] == 256
            kind = left[0] if wide and left else (Type.Q8_0 if case.startswith("blocks") and shape[-1] == 32 else Type.F16)
            left = left[1:] if wide else left
            if kind in HALVES:
                stored = random_blocks(rng, shape, kind)
            else:
                stored = (rng.normal(size=shape) * 0.3).astype(np.float16 if kind == Type.F16 else np.float32)
            if kind == Type.BF16:
                stored = gguf.quantize(stored, kind)
            writer.add_tensor(key, stored, raw_dtype=kind)
            value = dequantize(stored, kind).reshape(shape).astype(np.float32)
            if order:
                value = turned_back(value, order)
            kinds[name] = kind
        values[name] = np.ascontiguousarray(value)
    rope = config.rope_parameters
    if rope.get("rope_type") == "llama3":
        plain = 1.0 / rope["rope_theta"] ** (torch.arange(0, config.head_dim, 2).float() / config.head_dim)
        factors = (plain / model.model.rotary_emb.inv_freq).numpy().astype(np.float32)
        writer.add_tensor("rope_freqs.weight", factors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert not left or not case.startswith("blocks"), left
    model.load_state_dict({name: torch.from_numpy(value) for name, value in values.items()}, strict=False)
    model.tie_weights()
    with torch.no_grad():
        logits = model(torch.tensor([TOKENS])).logits[0].numpy()
        if case in BY_TRANSFORMERS:
            other = AutoModelForCausalLM.from_pretrained(root, gguf_file="model.gguf", dtype=torch.float32).eval()
            assert torch.equal(other(torch.tensor([TOKENS])).logits[0], torch.from_numpy(logits)), case
            print(case, "is read by transformers with the same logits")
    digest = lambda value: hashlib.sha256(value.tobytes()).hexdigest()
    return {
        "config": json.loads(config.to_json_string(use_diff=False)),
        "tokens": TOKENS,
        "logits": [round(float(value), 6) for value in logits.ravel()],
        "tensors": {
            name: {"type": kinds[name].name, "shape": list(value.shape), "sha256": digest(value), "first": [float(it) for it in value.ravel()[:4]]}
            for name, value in values.items()
        },
    }


def main():
    HERE.mkdir(parents=True, exist_ok=True)
    for case, (config, arch) in {**CASES, **BY_TRANSFORMERS}.items():
        with tempfile.TemporaryDirectory() as root:
            golden = write(case, config, arch, Path(root))
            if case in CASES:
                shutil.copy(Path(root) / "model.gguf", HERE / f"{case}.gguf")
                (HERE / f"{case}.json").write_text(json.dumps(golden, indent=None, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
