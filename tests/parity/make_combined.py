"""Make the golden files of combined adapters: two of LoRA, and what PEFT's `add_weighted_adapter` makes of them.

    python make_combined.py        # rewrite crates/methods/tests/peft_files/combined
"""

import shutil
import warnings
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from make_golden import sort_targets
from tiny import randomise, seeded

HERE = Path(__file__).parent
FOLDER = HERE.parent.parent / "crates/methods/tests/peft_files/combined"
WEIGHTS, DENSITY = [1.25, -0.5], 0.4
KINDS = ["linear", "cat", "svd", "ties", "ties_svd", "magnitude_prune", "magnitude_prune_svd"]
PATH = "model.layers.0.self_attn.q_proj"


def main() -> None:
    """Write both adapters, and the two matrices of every kind of combination."""
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    shutil.rmtree(FOLDER, ignore_errors=True)
    model = AutoModelForCausalLM.from_pretrained(HERE / "golden/llama/base")
    model.name_or_path = "tiny/llama"
    for name, alpha in (("a", 8), ("b", 6)):
        config = LoraConfig(r=3, lora_alpha=alpha, target_modules=PATH, task_type="CAUSAL_LM")
        model = get_peft_model(model, config, name) if name == "a" else model
        if name == "b":
            model.add_adapter(name, config)
    trained = [(name, value) for name, value in model.named_parameters() if "lora_" in name]
    randomise(trained, seeded("combined"))
    model.save_pretrained(FOLDER)
    layer = model.get_submodule(f"base_model.model.{PATH}")
    expected = {}
    for kind in KINDS:
        for method in ("total", "frequency") if "ties" in kind else ("",):
            name = f"{kind}{f'_{method}' if method else ''}"
            how = {"majority_sign_method": method} if method else {}
            model.add_weighted_adapter(["a", "b"], WEIGHTS, name, kind, svd_rank=2, density=DENSITY, **how)
            expected[f"{name}/A"] = layer.lora_A[name].weight.detach().clone()
            expected[f"{name}/B"] = layer.lora_B[name].weight.detach().clone()
            if layer.scaling[name] != 1:
                raise AssertionError(name)
    for name in ("a", "b"):
        (FOLDER / name / "README.md").unlink(missing_ok=True)
        sort_targets(FOLDER / name / "adapter_config.json")
    (FOLDER / "README.md").unlink(missing_ok=True)
    save_file({key: value.contiguous() for key, value in expected.items()}, FOLDER / "expected.safetensors")


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)
    main()
