"""Writes golden_fastfood.json: projections by the code of Aghajanyan et al. 2021.

    pip install torch numpy
    git clone https://github.com/rabeehk/compacter
    python crates/methods/tests/make_fastfood.py compacter/seq2seq/projections/intrinsic.py

The argument is the file that has `fastfood_vars` and `fastfood_torched`. The unit tests of
parts/fastfood.rs compare with it.
"""

import importlib.util
import json
import pathlib
import sys
import types

import numpy
import torch

# The code imports its CUDA extension, which the CPU does not need.
for name in ("seq2seq", "seq2seq.projections", "seq2seq.projections.fwh_cuda"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["seq2seq.projections.fwh_cuda"].fast_walsh_hadamard_transform = None
spec = importlib.util.spec_from_file_location("reference", sys.argv[1])
reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reference)

torch.manual_seed(0)
numpy.random.seed(0)
cases = []
# Nothing is cut; some of it is; more values are projected than there is room for, and are cut.
for dimension, size in ((5, 16), (6, 11), (8, 5)):
    signs, permutation, gaussian, divisor, padded = reference.fastfood_vars(size, "cpu")
    theta = torch.randn(dimension)
    read = theta[:padded]
    projected = reference.fastfood_torched(read, size, (signs, permutation, gaussian, divisor, padded))
    cases.append(
        {
            "size": size,
            "signs": signs.tolist(),
            "permutation": permutation.tolist(),
            "gaussian": gaussian.tolist(),
            "theta": theta.tolist(),
            "projected": projected.tolist(),
        }
    )
path = pathlib.Path(__file__).with_name("golden_fastfood.json")
path.write_text("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")
