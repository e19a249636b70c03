"""Makes golden/packed: tiny Llama checkpoints that AutoGPTQ and AutoAWQ packed, with the values that these unpack.

    pip download --no-deps auto-gptq==0.7.1 autoawq==0.2.9   # and unpack both below SOURCES
    python make_packed_golden.py SOURCES

Only their files that pack a linear layer are used; the packages themselves want an older PyTorch.
"""

import importlib.util
import json
import sys
import types
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

SOURCES = Path(sys.argv[1])
OUT = Path(__file__).parent / "golden" / "packed"
SHAPE = dict(vocab_size=40, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
             num_key_value_heads=4, max_position_embeddings=32, tie_word_embeddings=True)


def load(name: str, path: Path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def of(package: str, file: str) -> Path:
    return next(SOURCES.glob(f"**/{package}/{file}"))


QuantLinear = load("qlinear_cuda", of("auto_gptq", "nn_modules/qlinear/qlinear_cuda.py")).QuantLinear
awq = of("awq", "utils/packing_utils.py").parent.parent
for name in ["awq", "awq.utils", "awq.modules"]:
    package = types.ModuleType(name)
    package.__path__ = [str(awq / Path(*name.split(".")[1:]))]
    sys.modules[name] = package
WQLinear = load("awq_gemm", awq / "modules/linear/gemm.py").WQLinear_GEMM
dequantize_gemm = sys.modules["awq.utils.packing_utils"].dequantize_gemm


def scales_and_zeros(weight: torch.Tensor, group: int, bits: int, symmetric: bool):
    """Of each output and group, `[out, groups]`; scales are f16 numbers."""
    out, inputs = weight.shape
    parts = weight.reshape(out, inputs // group, group)
    most = 2**bits - 1
    if symmetric:
        scales = 2 * parts.abs().amax(-1) / most
        zeros = torch.full_like(scales, (most + 1) / 2)
    else:
        low, high = parts.amin(-1).clamp(max=0), parts.amax(-1).clamp(min=0)
        scales = (high - low) / most
        zeros = torch.round(-low / scales)
        # GPTQ stores one less, in as many bits.
        zeros = zeros.clamp(1, most)
    return scales.half().float(), zeros


def clamped(weight, scales, zeros, groups, bits):
    """The weight with what the codes cannot say cut off, which the packing does not check."""
    scales, zeros = scales[:, groups], zeros[:, groups]
    codes = torch.round(weight / scales + zeros).clamp(0, 2**bits - 1)
    return (codes - zeros) * scales


def gptq(linear, bits, group, symmetric, act_order):
    out, inputs = linear.weight.shape
    group = inputs if group == -1 else group
    groups = torch.arange(inputs) // group
    if act_order:
        groups = groups[torch.randperm(inputs, generator=torch.Generator().manual_seed(5))]
    scales, zeros = scales_and_zeros(linear.weight.data, group, bits, symmetric)
    linear.weight.data = clamped(linear.weight.data, scales, zeros, groups, bits)
    packed = QuantLinear(bits, group, inputs, out, False, weight_dtype=torch.float32)
    packed.pack(linear, scales.clone(), zeros.clone(), groups)
    dense = packed(torch.eye(inputs)).T.contiguous()
    parts = {"qweight": packed.qweight, "qzeros": packed.qzeros, "scales": packed.scales.half(),
             "g_idx": packed.g_idx.int()}
    return parts, dense


def awq_parts(linear, bits, group, _symmetric, _act_order):
    inputs = linear.weight.shape[1]
    scales, zeros = scales_and_zeros(linear.weight.data, group, bits, False)
    linear.weight.data = clamped(linear.weight.data, scales, zeros, torch.arange(inputs) // group, bits)
    packed = WQLinear.from_linear(linear, bits, group, scales=scales.T.contiguous(), zeros=zeros.T.contiguous())
    # In f32: in f16 each value would be rounded once more.
    dense = dequantize_gemm(packed.qweight, packed.qzeros, packed.scales.float(), bits, group).T.contiguous()
    return {"qweight": packed.qweight, "qzeros": packed.qzeros, "scales": packed.scales}, dense


CASES = {
    "gptq-4": (gptq, 4, 16, True, False),
    "gptq-4-zeros": (gptq, 4, 16, False, False),
    "gptq-4-rows": (gptq, 4, -1, True, False),
    "gptq-4-act-order": (gptq, 4, 16, False, True),
    "gptq-8": (gptq, 8, 32, True, False),
    "gptq-8-zeros": (gptq, 8, 32, False, False),
    "gptq-2": (gptq, 2, 32, False, False),
    "awq-4": (awq_parts, 4, 16, False, False),
}

for name, (pack, bits, group, symmetric, act_order) in CASES.items():
    torch.manual_seed(1)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE))
    tensors, dense = {}, {}
    for key, value in model.state_dict().items():
        if key.endswith("_proj.weight"):
            linear = torch.nn.Linear(value.shape[1], value.shape[0], bias=False)
            linear.weight.data = value.clone()
            parts, values = pack(linear, bits, group, symmetric, act_order)
            tensors |= {key.removesuffix("weight") + part: tensor.clone() for part, tensor in parts.items()}
            dense[key] = values.float()
        elif key != "lm_head.weight":
            tensors[key] = value.half()
    directory = OUT / name
    directory.mkdir(parents=True, exist_ok=True)
    config = model.config.to_dict()
    config["quantization_config"] = {"quant_method": name.split("-")[0], "bits": bits, "group_size": group}
    if name.startswith("gptq"):
        config["quantization_config"] |= {"desc_act": act_order, "sym": symmetric, "checkpoint_format": "gptq"}
    else:
        config["quantization_config"] |= {"zero_point": True, "version": "gemm"}
    (directory / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    save_file(dense, directory / "dense.safetensors")
    print(name, sum(value.numel() for value in dense.values()))
