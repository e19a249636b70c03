"""Writes quantized_reference.txt: codes, scales and values of bitsandbytes on the CPU, and of gguf.

    python -m venv venv && venv/bin/pip install torch numpy bitsandbytes gguf
    venv/bin/python quantized_reference.py > quantized_reference.txt

One line a case: `format out in values: what=hex ...`. Long arrays are given by their 64-bit FNV-1a
hashes. Zeros have no sign: bitsandbytes' own paths differ there.
"""

import numpy as np
import torch
import bitsandbytes as bnb
import bitsandbytes.functional as F
from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
from gguf.quants import Q4_0

torch.set_num_threads(1)


def pseudo_random(length, seed):
    """As `values` in quantized.rs."""
    i = np.arange(length, dtype=np.uint32)
    rotated = np.uint32((seed << 16 | seed >> 16) & 0xFFFFFFFF)
    with np.errstate(over="ignore"):
        z = (i ^ rotated) * np.uint32(0x9E3779B9)
        z = (z ^ z >> np.uint32(15)) * np.uint32(0x85EBCA6B)
    return ((z ^ z >> np.uint32(13)) >> np.uint32(8)).astype(np.float32) / np.float32(1 << 23) - np.float32(1)


def adversarial(length):
    """Blocks of 64: zeros, one outlier, subnormals, equal values, huge and tiny ones, bounds."""
    x = pseudo_random(length, 77)
    for block, start in enumerate(range(0, length, 64)):
        piece = x[start : start + 64]
        match block % 8:
            case 0:
                piece[:] = 0
            case 1:
                piece[5 % len(piece)] = 1e6
            case 2:
                piece *= np.float32(1e-40)
            case 3:
                piece[:] = np.float32(0.3)
            case 4:
                piece *= np.float32(3e4)
            case 5:
                piece[:] = np.float32(-0.0)
            case 6:
                piece[:] = np.round(piece * 8) / 8
            case 7:
                piece *= np.float32(1e-38)
    return x


def given(array):
    data = np.ascontiguousarray(array).tobytes()
    if len(data) <= 640:
        return data.hex()
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"fnv:{value:016x}"


def write(form, out, inputs, kind, **arrays):
    print(f"{form} {out} {inputs} {kind}: " + " ".join(f"{key}={given(a)}" for key, a in arrays.items()))


def weight(out, inputs, kind):
    x = adversarial(out * inputs) if kind == "adversarial" else pseudo_random(out * inputs, int(kind))
    return x.reshape(out, inputs)


CASES = [(3, 200, "adversarial"), (7, 91, "adversarial"), (1, 1, "1"), (1, 64, "2"), (5, 33, "3"), (130, 96, "4"), (300, 448, "5")]

for out, inputs, kind in CASES:
    x = weight(out, inputs, kind)
    for form in ["nf4", "fp4"]:
        codes, state = F.quantize_4bit(
            torch.from_numpy(x.copy()), blocksize=64, compress_statistics=True, quant_type=form
        )
        nested = state.state2
        scales = F.dequantize_blockwise(state.absmax, nested) + state.offset
        # As on a GPU. The CPU's own kernel takes wrong scales for rows that are not whole blocks.
        values = _dequantize_4bit_compute(codes.reshape(-1), scales, state.code, 64, (out, inputs), torch.float32)
        if inputs % 64 == 0:
            assert torch.equal(values, F.dequantize_4bit(codes, state))
        write(
            form, out, inputs, kind,
            codes=codes.numpy(), nested_codes=state.absmax.numpy(), map=nested.code.numpy(),
            nested_scales=nested.absmax.numpy(), offset=state.offset.numpy().reshape(1),
            values=values.numpy().reshape(-1) + np.float32(0),
        )
    codes, largest, _ = F.int8_vectorwise_quant(torch.from_numpy(np.clip(x, -6e4, 6e4)).half())
    # As `MatMul8bitFp`, the product on a CPU, decodes them.
    values = codes.float().mul_(largest.unsqueeze(1).mul(1.0 / 127.0))
    write("int8", out, inputs, kind, codes=codes.numpy(), largest=largest.numpy(), values=values.numpy() + np.float32(0))
    if out * inputs % 32 == 0:
        blocks = Q4_0.quantize_blocks(np.clip(x, -6e4, 6e4).reshape(-1, 32))
        halves = blocks[:, 2:]
        order = np.concatenate([halves & 15, halves >> 4], axis=1).reshape(-1, 2)
        write(
            "int4", out, inputs, kind,
            codes=(order[:, 0] << 4 | order[:, 1]).astype(np.uint8),
            scales=blocks[:, :2], values=Q4_0.dequantize_blocks(blocks).reshape(-1) + np.float32(0),
        )
