"""Writes adamw_reference.txt: parameters after each of six steps of torch.optim.AdamW.

Run: python adamw_reference.py > adamw_reference.txt

Line 1: lr, beta1, beta2, eps, weight_decay. Line 2: the parameters before. Then, for each step,
a line of gradients and a line of parameters after it. Every number is a float32, printed exactly.
"""

import torch

OPTIONS = dict(lr=3e-3, betas=(0.9, 0.98), eps=1e-7, weight_decay=0.05)
STEPS, SIZE = 6, 23


def line(values):
    print(" ".join(repr(float(value)) for value in values))


torch.manual_seed(0)
parameter = torch.nn.Parameter(torch.randn(SIZE))
optimizer = torch.optim.AdamW([parameter], foreach=False, fused=False, **OPTIONS)
line([OPTIONS["lr"], *OPTIONS["betas"], OPTIONS["eps"], OPTIONS["weight_decay"]])
line(parameter.detach())
for step in range(STEPS):
    gradient = torch.randn(SIZE) * 10.0 ** torch.randint(-6, 3, (SIZE,))
    gradient[step] = 0.0
    line(gradient)
    parameter.grad = gradient
    optimizer.step()
    line(parameter.detach())
