"""Compare GGUF files that `epiphyte` writes and reads with PyPI's `gguf`, which does so as llama.cpp.

Tiny seeded models of each family are exported, and adapters that HF PEFT saves over them. Names of
tensors are those of `gguf`'s own table, values what the definition of each family says, metadata
what its keys are for. The tokens of a real SentencePiece vocabulary are joined by the scores in the
file, as llama.cpp does, and compared with the tokenizer's own.

Each file is read again too: its losses are those of the directory from which it was exported. The
quickstart's base is quantized by `gguf`; losses over each file are those of a directory with the
values of `gguf.quants.dequantize`, also after a few steps of LoRA.

    cargo build --workspace
    python gguf_live.py ../../target/debug/epiphyte [STORIES260K]
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map
from gguf.quants import dequantize, quantize
from peft import LoraConfig, get_peft_model
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers import Gemma2Config, Gemma3TextConfig, GemmaConfig, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config
from tokenizers import Tokenizer, models, pre_tokenizers, decoders

SIZES = dict(
    vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    intermediate_size=48, max_position_embeddings=64, head_dim=8,
)  # fmt: skip
LLAMA3 = dict(rope_type="llama3", rope_theta=10000.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=32)  # fmt: skip
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CASES = {
    "llama": (LlamaConfig(**SIZES, tie_word_embeddings=False), MODEL_ARCH.LLAMA),
    "llama3": (LlamaConfig(**SIZES, rope_parameters=LLAMA3, attention_bias=True), MODEL_ARCH.LLAMA),
    "mistral": (MistralConfig(**SIZES, sliding_window=None), MODEL_ARCH.LLAMA),
    "qwen2": (Qwen2Config(**{k: v for k, v in SIZES.items() if k != "head_dim"}), MODEL_ARCH.QWEN2),
    "qwen3": (Qwen3Config(**SIZES, tie_word_embeddings=True), MODEL_ARCH.QWEN3),
    "gemma": (GemmaConfig(**SIZES, tie_word_embeddings=True), MODEL_ARCH.GEMMA),
    "gemma2": (Gemma2Config(**SIZES, query_pre_attn_scalar=8, sliding_window=16), MODEL_ARCH.GEMMA2),
    "gemma3": (Gemma3TextConfig(**{**SIZES, "num_hidden_layers": 6}, query_pre_attn_scalar=8, sliding_window=16), MODEL_ARCH.GEMMA3),
}  # fmt: skip


QUICKSTART = Path(__file__).parents[2] / "crates/epiphyte/assets/quickstart"
QUANTIZED = ["F16", "BF16", "Q8_0", "Q5_0", "Q5_1", "Q4_0", "Q4_1"]


def run(*arguments):
    done = subprocess.run([sys.argv[1], *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def loss(*arguments):
    """The loss of texts over a base or an adapter."""
    score = run("eval", "--data", QUICKSTART / "eval.jsonl", "--task", "causal-lm", "--text-columns", "text",
                "--max-length", 64, "--json", *arguments)  # fmt: skip
    return json.loads(score)["loss"]


def read_again(case, base, file):
    # Gemma's norms are rounded once more.
    expected, found = loss("--model", base), loss("--model", file)
    assert abs(found - expected) < (1e-5 if "gemma" in case else 1e-9), (case, found, expected)


def byte_level_tokenizer(directory):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(alphabet)}
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    split = pre_tokenizers.Split(__import__("tokenizers").Regex(QWEN_SPLIT), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", additional_special_tokens=["<|start|>"])
    fast.chat_template = "{{ messages[0].content }}"
    fast.save_pretrained(directory)
    return fast


def value(reader, key):
    field = reader.fields[key]
    return field.contents()


def permuted(weight, heads):
    """The order in which llama.cpp turns a head's dimensions, as its converter has it."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def expected(name, weight, arch, config):
    weight = weight.float().numpy()
    if arch == MODEL_ARCH.LLAMA and "q_proj" in name:
        weight = permuted(weight, config.num_attention_heads)
    if arch == MODEL_ARCH.LLAMA and "k_proj" in name:
        weight = permuted(weight, config.num_key_value_heads)
    if MODEL_ARCH_NAMES[arch].startswith("gemma") and name.endswith("norm.weight"):
        weight = weight + 1
    return weight


def compare(case, config, arch, root):
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3)
    base = root / case
    model.save_pretrained(base)
    tokenizer = byte_level_tokenizer(base)
    run("export", "--model", base, "--to", "gguf", "--output", root / f"{case}.gguf")
    read_again(case, base, root / f"{case}.gguf")
    reader = GGUFReader(root / f"{case}.gguf")
    names = get_tensor_name_map(arch, config.num_hidden_layers)
    state = dict(model.state_dict())
    if config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    found = {tensor.name: tensor for tensor in reader.tensors}
    for name, weight in state.items():
        key = names.get_name(name, try_suffixes=(".weight", ".bias"))
        tensor = found.pop(key)
        wanted = expected(name, weight, arch, config)
        assert list(tensor.shape)[::-1] == list(wanted.shape), (case, name)
        assert np.array_equal(tensor.data, wanted), (case, name)
    if case == "llama3":
        factors = found.pop("rope_freqs.weight").data
        plain = 1.0 / 10000.0 ** (np.arange(0, 8, 2) / 8)
        scaled = model.model.rotary_emb.inv_freq.numpy()
        assert np.allclose(factors, plain / scaled, rtol=1e-5), factors
    assert not found, (case, list(found))
    prefix = MODEL_ARCH_NAMES[arch]
    assert value(reader, "general.architecture") == prefix
    facts = {
        "context_length": config.max_position_embeddings, "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers, "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads, "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": 8, "rope.dimension_count": 8, "vocab_size": 300,
    }  # fmt: skip
    for key, fact in facts.items():
        assert value(reader, f"{prefix}.{key}") == fact, (case, key)
    assert abs(value(reader, f"{prefix}.attention.layer_norm_rms_epsilon") - config.rms_norm_eps) < 1e-9
    if case in ("gemma2", "gemma3"):
        assert value(reader, f"{prefix}.attention.sliding_window") == 16
    if case == "gemma2":
        assert value(reader, "gemma2.attn_logit_softcapping") == 50.0
        assert value(reader, "gemma2.final_logit_softcapping") == 30.0
    if case == "gemma3":
        assert value(reader, "gemma3.rope.freq_base_swa") == 10000.0
    tokens = value(reader, "tokenizer.ggml.tokens")
    kinds = value(reader, "tokenizer.ggml.token_type")
    for token, number in tokenizer.get_vocab().items():
        assert tokens[number] == token
        assert kinds[number] == (3 if token.startswith("<|") else 1), token
    assert len(tokens) == 300 and kinds[299] == 5
    assert value(reader, "tokenizer.ggml.model") == "gpt2" and value(reader, "tokenizer.ggml.pre") == "qwen2"
    assert value(reader, "tokenizer.ggml.merges") == ["t h", "th e", "Ġ the", "i n"]
    assert value(reader, "tokenizer.ggml.eos_token_id") == tokenizer.eos_token_id
    assert value(reader, "tokenizer.chat_template") == tokenizer.chat_template
    adapter(case, model, config, arch, root)


def adapter(case, model, config, arch, root):
    lora = LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "k_proj", "down_proj"], rank_pattern={"layers.1.self_attn.q_proj": 2},
                      alpha_pattern={"down_proj": 3})  # fmt: skip
    peft = get_peft_model(model, lora)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape))
    peft.save_pretrained(root / f"{case}-lora")
    output = root / f"{case}-lora.gguf"
    run("export", "--model", root / case, "--adapter", root / f"{case}-lora", "--to", "gguf", "--output", output)
    reader = GGUFReader(output)
    assert value(reader, "general.type") == "adapter" and value(reader, "adapter.type") == "lora"
    alpha = value(reader, "adapter.lora.alpha")
    found = {tensor.name: tensor.data for tensor in reader.tensors}
    names = get_tensor_name_map(arch, config.num_hidden_layers)
    for path, module in peft.named_modules():
        if not hasattr(module, "lora_A"):
            continue
        name = path.removeprefix("base_model.model.") + ".weight"
        key = names.get_name(name, try_suffixes=(".weight",))
        a, b = found.pop(f"{key}.lora_a"), found.pop(f"{key}.lora_b")
        # llama.cpp adds alpha / rank times B A.
        change = alpha / a.shape[0] * (b @ a)
        wanted = expected(name, module.get_delta_weight("default").detach(), arch, config)
        if arch != MODEL_ARCH.LLAMA:
            wanted = module.get_delta_weight("default").detach().numpy()
        assert np.allclose(change, wanted, atol=1e-5), (case, name)
    assert not found, list(found)


def joined(text, tokens, scores):
    """SentencePiece's encoding as llama.cpp computes it: the pair with the highest score first."""
    parts = list("▁" + text.replace(" ", "▁"))
    while True:
        pairs = [(scores[tokens[a + b]], -at) for at, (a, b) in enumerate(zip(parts, parts[1:])) if a + b in tokens]
        if not pairs:
            return parts
        at = -max(pairs)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def stories(directory, root):
    run("export", "--model", directory, "--to", "gguf", "--output", root / "stories.gguf")
    reader = GGUFReader(root / "stories.gguf")
    tokens = {token: number for number, token in enumerate(value(reader, "tokenizer.ggml.tokens"))}
    scores = value(reader, "tokenizer.ggml.scores")
    kinds = value(reader, "tokenizer.ggml.token_type")
    assert value(reader, "tokenizer.ggml.model") == "llama" and value(reader, "tokenizer.ggml.add_bos_token")
    assert kinds[:4] == [2, 3, 3, 6] and kinds[259] == 1
    assert value(reader, "tokenizer.ggml.add_space_prefix") is True
    tokenizer = AutoTokenizer.from_pretrained(directory)
    for text in ["Once upon a time there was a little girl named Lily.", "The dog ran away and they were very happy"]:
        expected_ids = tokenizer.encode(text, add_special_tokens=False)
        assert [tokens[part] for part in joined(text, tokens, scores)] == expected_ids, text


def rewritten(source, path, kind):
    """A copy of a file with its matrices in a type; the values of each tensor."""
    reader = GGUFReader(source)
    writer = GGUFWriter(path, value(reader, "general.architecture"))
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        sub_type = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(key, field.contents(), field.types[0], sub_type)
    values = {}
    for tensor in reader.tensors:
        own = kind if len(tensor.shape) > 1 else GGMLQuantizationType.F32
        data = quantize(tensor.data.astype(np.float32), own)
        writer.add_tensor(tensor.name, data, raw_dtype=own)
        values[tensor.name] = dequantize(data, own).astype(np.float32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def turned_back(weight, heads):
    return weight.reshape(heads, weight.shape[0] // heads // 2, 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def quickstart(root):
    base = QUICKSTART / "base"
    config = json.loads((base / "config.json").read_text())
    run("export", "--model", base, "--to", "gguf", "--output", root / "base.gguf")
    read_again("quickstart", base, root / "base.gguf")
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for kind in QUANTIZED:
        file = root / f"base-{kind}.gguf"
        values = rewritten(root / "base.gguf", file, GGMLQuantizationType[kind])
        directory = root / f"base-{kind}"
        shutil.copytree(base, directory)
        tensors = {}
        for name in load_file(base / "model.safetensors"):
            tensor = values[names.get_name(name, try_suffixes=(".weight", ".bias"))]
            order = heads.get(name.split(".")[-2])
            tensors[name] = np.ascontiguousarray(turned_back(tensor, order) if order else tensor)
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        expected, found = loss("--model", directory), loss("--model", file)
        assert abs(found - expected) < 1e-6, (kind, found, expected)
        trained = {}
        for model in (directory, file):
            adapter = root / f"{model.name}-lora"
            run("train", "--model", model, "--task", "causal-lm", "--train-data", QUICKSTART / "train.jsonl",
                "--text-columns", "text", "--max-length", 64, "--batch-size", 8, "--max-steps", 12,
                "--learning-rate", 5e-3, "--output", adapter)  # fmt: skip
            trained[model] = loss("--model", model, "--adapter", adapter)
        assert abs(trained[file] - trained[directory]) < 1e-4, (kind, trained)
        assert trained[file] < found - 0.2, (kind, found, trained)
        print(f"quickstart in {kind} agrees: loss {found:.4f}, {trained[file]:.4f} after 12 steps")


def main():
    with tempfile.TemporaryDirectory() as folder:
        for case, (config, arch) in CASES.items():
            compare(case, config, arch, Path(folder))
            print(case, "agrees")
        quickstart(Path(folder))
        if len(sys.argv) > 2:
            stories(Path(sys.argv[2]), Path(folder))
            print("vocabulary of stories260K agrees")


if __name__ == "__main__":
    main()
