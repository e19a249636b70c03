"""Make golden_optimizers.json: parameters after some steps of optimizers that others wrote.

Adafactor is transformers', as its `Trainer` configures it; AdamW in 8 bits is bitsandbytes' own step
in plain PyTorch (the reference of its kernels); GaLore is `galore_torch.GaLoreAdamW`. Parameters and
gradients follow from a formula that the test repeats.

    pip install --no-deps galore-torch==1.0
    python make_golden_optimizers.py
"""

import json
import sys
import types
from pathlib import Path

import numpy as np
import torch
from bitsandbytes.functional import create_dynamic_map
from transformers import Adafactor

STEPS, EVERY = 4, 53
RATE, DECAY = 0.01, 0.05


def values(count, step):
    at = np.arange(count, dtype=np.float64)
    return torch.tensor((np.cos(0.37 * at + 1.3 * step) * 10.0 ** (at % 5 - 3)).astype(np.float32))


def run(shape, build):
    parameter = torch.nn.Parameter(values(int(np.prod(shape)), 100).reshape(shape))
    step = build(parameter)
    for number in range(STEPS):
        parameter.grad = values(parameter.numel(), number).reshape(shape)
        step()
    return [float(value) for value in parameter.detach().flatten()[::EVERY]]


def adafactor(parameter):
    options = dict(scale_parameter=False, relative_step=False, warmup_init=False)
    # As `Trainer` groups parameters: vectors are not decayed.
    decay = DECAY if parameter.dim() > 1 else 0.0
    return Adafactor([parameter], lr=RATE, weight_decay=decay, **options).step


def adamw_8bit(parameter):
    # The reference lies beside kernels that need triton.
    triton = types.ModuleType("triton")
    triton.jit = lambda function: function
    triton.language = types.ModuleType("triton.language")
    triton.language.constexpr = object
    sys.modules.setdefault("triton", triton)
    sys.modules.setdefault("triton.language", triton.language)
    torch.compile = lambda function: function
    from bitsandbytes.backends.triton import kernels_optim

    maps = [create_dynamic_map(signed=True), create_dynamic_map(signed=False)]
    codes = [torch.zeros(parameter.shape, dtype=torch.uint8) for _ in maps]
    scales = [torch.zeros(-(-parameter.numel() // 256)) for _ in maps]
    steps = [0]

    def step():
        steps[0] += 1
        kernels_optim.optimizer_update_8bit_blockwise_pytorch(
            parameter, parameter.grad, codes[0], codes[1], 0.9, 0.999, 0.0, 0.0, 1e-8, steps[0], RATE,
            maps[0], maps[1], scales[0], scales[1], DECAY, 1.0, False, optimizer_name="adam",
        )  # fmt: skip

    return step


def galore(parameter):
    from galore_torch import GaLoreAdamW

    group = dict(params=[parameter], rank=3, update_proj_gap=200, scale=0.25, proj_type="std")
    return GaLoreAdamW([group], lr=RATE, eps=1e-8, weight_decay=DECAY, no_deprecation_warning=True).step


def main():
    golden = {
        "adafactor matrix": run((24, 40), adafactor),
        "adafactor vector": run((300,), adafactor),
        "adamw-8bit": run((64, 70), adamw_8bit),
        "galore": run((40, 24), galore),
    }
    path = Path(__file__).parent / "golden_optimizers.json"
    path.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
