"""Make the golden file of `crates/methods/tests/peft_files/converted.rs` with HF PEFT.

Adapters of the golden folders are put on their bases and converted by PEFT's `convert_to_lora`, to a
fixed rank and to a share of the change. The file holds, for each linear layer, the rank and what
B A makes of the vector cos(0), cos(1), ….

    python make_converted.py
"""

from pathlib import Path

import torch
from peft import PeftModel, convert_to_lora
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification, AutoModelForCausalLM

HERE = Path(__file__).parent
OUT = HERE.parents[1] / "crates/methods/tests/peft_files/converted.safetensors"
CASES = [("bert", "loha"), ("bert", "lokr"), ("gpt2", "lora"), ("gpt2", "vblora"), ("llama", "loha")]
RANKS = {"2": 2, "0.8": 0.8}


def main():
    tensors = {}
    for base, method in CASES:
        directory = HERE / "golden" / base
        load = AutoModelForSequenceClassification if base == "bert" else AutoModelForCausalLM
        for name, rank in RANKS.items():
            model = load.from_pretrained(directory / "base", dtype=torch.float32)
            model = PeftModel.from_pretrained(model, directory / method)
            config, state = convert_to_lora(model, rank=rank)
            for key, a in state.items():
                if "lora_A" not in key:
                    continue
                path = key.split(".lora_A")[0].removeprefix("base_model.model.")
                b = state[key.replace("lora_A", "lora_B")]
                x = torch.arange(a.shape[1], dtype=torch.float64).cos()
                product = b.double() @ (a.double() @ x)
                rank = torch.tensor([a.shape[0]], dtype=torch.float64)
                tensors[f"{base}/{method}/{name}/{path}"] = torch.cat([rank, product]).float()
    save_file(tensors, OUT)
    print(len(tensors), OUT.stat().st_size)


if __name__ == "__main__":
    main()
