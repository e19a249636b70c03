"""Writes golden_lora_fa.json: steps of HF PEFT's LoRA-FA optimizer, in float64.

    pip install torch peft
    python crates/methods/tests/make_lora_fa.py

The unit tests of reparametrized/lora_fa.rs compare with it.
"""

import json
import pathlib

import torch
from peft.optimizers.lorafa import LoraFAOptimizer

OUTPUTS, INPUTS, RANK, STEPS, LEARNING_RATE, EPSILON = 5, 7, 3, 4, 1e-2, 1e-6
torch.manual_seed(0)
cases = []
for scaling in (2.0, 0.25):
    # As numbers of single precision, so that both start from the same.
    draw = lambda *shape: torch.randn(*shape).double()
    a = torch.nn.Parameter(draw(RANK, INPUTS), requires_grad=False)
    b = torch.nn.Parameter(draw(OUTPUTS, RANK))
    group = {
        "params": [a, b],
        "names": ["layer.lora_A.weight", "layer.lora_B.weight"],
        "scaling_factors": [scaling, scaling],
    }
    optimizer = LoraFAOptimizer([group], lr=LEARNING_RATE, eps=EPSILON)
    case = {
        "scaling": scaling,
        "learning_rate": LEARNING_RATE,
        "epsilon": EPSILON,
        "a": a.flatten().tolist(),
        "b": b.flatten().tolist(),
        "gradients": [],
        "after": [],
    }
    for _ in range(STEPS):
        b.grad = draw(OUTPUTS, RANK)
        case["gradients"].append(b.grad.flatten().tolist())
        optimizer.step()
        case["after"].append(b.flatten().tolist())
    cases.append(case)
path = pathlib.Path(__file__).with_name("golden_lora_fa.json")
path.write_text("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")
