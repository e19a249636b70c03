"""Writes golden_reft.json: interventions by pyreft, with their gradients, in float64.

    pip install torch transformers
    git clone https://github.com/stanfordnlp/pyreft
    python crates/methods/tests/make_reft.py pyreft/pyreft/interventions.py

The unit tests of adapters/reft.rs compare with it.
"""

import importlib.util
import json
import pathlib
import sys
import types

import torch


class Intervention(torch.nn.Module):
    """What pyreft takes of pyvene."""

    def __init__(self, **settings):
        super().__init__()
        self.embed_dim = settings["embed_dim"]


pyvene = types.ModuleType("pyvene")
for name in (
    "ConstantSourceIntervention",
    "SourcelessIntervention",
    "TrainableIntervention",
    "DistributedRepresentationIntervention",
):
    # One base class, and others beside it that add nothing.
    base = (Intervention,) if name == "SourcelessIntervention" else (object,)
    setattr(pyvene, name, type(name, base, {}))
sys.modules["pyvene"] = pyvene
spec = importlib.util.spec_from_file_location("reference", sys.argv[1])
reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reference)

SIZE, RANK, ROWS = 6, 2, 3
KINDS = {
    "loreft": reference.LoreftIntervention,
    "noreft": reference.NoreftIntervention,
    "direft": reference.DireftIntervention,
    "nodireft": reference.NodireftIntervention,
}
torch.manual_seed(0)
cases = []
for kind, make in KINDS.items():
    for activation in (None, "gelu"):
        unit = make(
            embed_dim=SIZE,
            low_rank_dimension=RANK,
            dtype=torch.float64,
            act_fn=activation,
            add_bias=False,
        ).double()
        states = torch.randn(ROWS, SIZE, dtype=torch.float64, requires_grad=True)
        weighting = torch.randn(ROWS, SIZE, dtype=torch.float64)
        output = unit(states)
        (output * weighting).sum().backward()
        # pyreft keeps `[d, r]` for a rotation and `[r, d]` for a projection.
        rotates = hasattr(unit, "rotate_layer")
        projection = unit.rotate_layer.weight.T if rotates else unit.proj_layer.weight
        case = {
            "kind": kind,
            "activation": activation,
            "states": states,
            "weighting": weighting,
            "weight": unit.learned_source.weight,
            "bias": unit.learned_source.bias,
            "projection": projection,
            "output": output,
            "d_states": states.grad,
            "d_weight": unit.learned_source.weight.grad,
            "d_bias": unit.learned_source.bias.grad,
        }
        if not rotates:
            case["d_projection"] = unit.proj_layer.weight.grad
        flat = {key: value.flatten().tolist() if torch.is_tensor(value) else value for key, value in case.items()}
        cases.append(flat)
path = pathlib.Path(__file__).with_name("golden_reft.json")
path.write_text("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")
