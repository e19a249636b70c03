"""Make the golden files of `crates/methods/tests/adapterhub` with AdapterHub's `adapters`.

Tiny seeded bases are saved as Hugging Face directories. For every method, adapters with random
weights are put into them by `adapters`; the files hold these weights under the keys of this project,
and the last hidden states of a few texts, computed in float64. `saved` has each adapter as the library
saves it.

    pip install adapters==1.3.0
    python make_adapterhub.py
"""

import json
from pathlib import Path

import adapters
import torch
from adapters import (
    AdapterPlusConfig,
    BnConfig,
    CompacterConfig,
    DoubleSeqBnConfig,
    LoRAConfig,
    ParBnConfig,
    SeqBnConfig,
    SeqBnInvConfig,
)
from adapters.composition import Fuse
from safetensors.torch import save_file
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel

OUT = Path(__file__).parents[2] / "crates/methods/tests/adapterhub"
ROWS = [[3, 7, 1, 19, 4], [25, 6, 2], [11, 28, 9, 5]]

SIZES = dict(vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24)
BASES = {
    "bert": lambda: BertModel(BertConfig(max_position_embeddings=32, **SIZES), add_pooling_layer=False),
    "llama": lambda: LlamaModel(LlamaConfig(max_position_embeddings=32, num_key_value_heads=2, **SIZES)),
}
PREFIX = {"bert": "bert.", "llama": "model."}
PARTS = [".adapters.", ".loras.", "shared_parameters", "adapter_fusion_layer", "invertible_adapters"]
WITH_HEADS = {"bert": adapters.BertAdapterModel, "llama": adapters.LlamaAdapterModel}

FROZEN = {"train_layer_norms": False}
# Of each case AdapterHub's configuration, our method, and our settings.
CASES = {
    "seq_bn": (SeqBnConfig(reduction_factor=4), "pfeiffer", {"reduction_factor": 4}),
    "seq_bn_leave_out": (SeqBnConfig(reduction_factor=4, leave_out=[0]), "pfeiffer", {"reduction_factor": 4, "leave_out": [0]}),
    "seq_bn_inv": (
        SeqBnInvConfig(reduction_factor=4),
        "pfeiffer",
        {"reduction_factor": 4, "inv_adapter": "nice"},
    ),
    "double_seq_bn": (DoubleSeqBnConfig(reduction_factor=4), "houlsby", {"reduction_factor": 4, "non_linearity": "swish", **FROZEN}),
    "par_bn": (ParBnConfig(), "scaled-parallel", {"parallel_input": "residual"}),
    "scaled_par_bn": (ParBnConfig(scaling="learned"), "scaled-parallel", {"parallel_input": "residual", "learn_scaling": True}),
    "adapter_plus": (AdapterPlusConfig(reduction_factor=4, stochastic_depth=0.0), "adapter-plus", {"reduction_factor": 4}),
    "compacter": (
        CompacterConfig(reduction_factor=2, phm_dim=4, phm_rank=2),
        "compacter",
        {"reduction_factor": 2, "phm_dim": 4, "phm_rank": 2, "non_linearity": "gelu", **FROZEN},
    ),
    "phm": (
        BnConfig(
            mh_adapter=True, output_adapter=True, reduction_factor=2, non_linearity="gelu", original_ln_before=False,
            phm_layer=True, phm_dim=2, factorized_phm_W=False, shared_phm_rule=False,
        ),
        "phm",
        {"reduction_factor": 2, "phm_dim": 2, "non_linearity": "gelu", **FROZEN},
    ),
    "lora": (
        LoRAConfig(r=4, alpha=6, attn_matrices=["q", "v"], leave_out=[0]),
        "lora",
        {"r": 4, "lora_alpha": 6, "layers_to_transform": [1], "target_modules": r".*(query|value|q_proj|v_proj)"},
    ),
}  # fmt: skip


def randomise(named, generator):
    """Weights that make each part of an adapter felt."""
    with torch.no_grad():
        for name, value in named:
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float32)
            value.copy_(1.0 + 0.3 * noise if name.endswith("scaling") else 0.4 * noise)


def our_key(base: str, key: str, numbers: dict[str, int]) -> str | None:
    """The key of this project for one of AdapterHub's, of adapters with these names."""
    if "invertible_adapters" in key:
        return f"{PREFIX[base]}invertible_adapter.{key.split('.', 2)[2]}"
    if "shared_parameters" in key:
        return key.rsplit(".", 1)[1]
    if "adapter_fusion_layer" in key:
        module, rest = key.split(".adapter_fusion_layer.")
        rest = "adapter_fusion_layer." + rest.split(".", 1)[1]
    else:
        if ".loras." in key:
            linear, rest = key.split(".loras.")
            return f"{PREFIX[base]}{linear}.{rest.split('.', 1)[1]}.weight"
        module, rest = key.split(".adapters.")
        name, rest = rest.split(".", 1)
        rest = rest.replace("adapter_down.0.", "adapter_down.")
        rest = f"adapters.{numbers[name]}.{rest}" if len(numbers) > 1 else rest
    # GPT-2 and Llama have a module of their own for adapters; here they are named after the block.
    module = module.replace("attention_adapters", "self_attn").replace("output_adapters", "mlp")
    return f"{PREFIX[base]}{module}.{rest}"


def states(model) -> torch.Tensor:
    """The last hidden states of each text alone, one below the other."""
    with torch.no_grad():
        return torch.cat([model(input_ids=torch.tensor([row])).last_hidden_state[0] for row in ROWS])


def main():
    for base, build in BASES.items():
        directory = OUT / base
        directory.mkdir(parents=True, exist_ok=True)
        described, tensors = {}, {}

        def fresh():
            torch.manual_seed(7)
            model = build().eval()
            generator = torch.Generator().manual_seed(11)
            with torch.no_grad():
                for name, value in model.named_parameters():
                    scale = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
                    value.copy_(scale + 0.3 * torch.randn(value.shape, generator=generator))
            return model

        plain = fresh()
        # The tensors alone, under the names of a model with a head.
        names = {f"{PREFIX[base]}{name}": value.contiguous() for name, value in plain.state_dict().items()}
        save_file(names, directory / "model.safetensors", metadata={"format": "pt"})
        config = json.loads(plain.config.to_json_string(use_diff=False))
        keep = [*SIZES, "max_position_embeddings", "num_key_value_heads", "model_type"]
        (directory / "config.json").write_text(json.dumps({key: config[key] for key in keep if key in config}, indent=2, sort_keys=True) + "\n")

        def record(case, model, adapter_names, method, settings):
            numbers = {name: number for number, name in enumerate(adapter_names)}
            ours = [
                (name, value)
                for name, value in model.named_parameters()
                if any(part in name for part in PARTS)
            ]
            randomise(ours, torch.Generator().manual_seed(len(case)))
            if len(adapter_names) == 1:
                saved = directory / "saved" / case
                saved.mkdir(parents=True, exist_ok=True)
                whole = model
                if any("shared_parameters" in name for name, _ in ours):
                    # The library leaves them out of the file of a model whose keys begin with them.
                    whole = WITH_HEADS[base](model.config)
                    whole.add_adapter("a", config=model.adapters_config.get("a"))
                    state = whole.state_dict()
                    for name, value in ours:
                        state[f"{PREFIX[base]}{name}"].copy_(value.detach())
                whole.save_adapter(str(saved), adapter_names[0], with_head=False, use_safetensors=True)
            model = model.double()
            for name, value in ours:
                tensors[f"{case}/{our_key(base, name, numbers)}"] = value.detach().float().contiguous()
            tensors[f"{case}/states"] = states(model).float()
            described[case] = {"method": method, "settings": settings}

        for case, (adapter, method, settings) in CASES.items():
            model = fresh()
            adapters.init(model)
            model.add_adapter("a", config=adapter)
            model.set_active_adapters("a")
            model.eval()
            record(case, model, ["a"], method, settings)

        model = fresh()
        adapters.init(model)
        for name, factor in [("a", 4), ("b", 2)]:
            model.add_adapter(name, config=SeqBnConfig(reduction_factor=factor, non_linearity="gelu"))
        model.add_adapter_fusion(["a", "b"])
        model.set_active_adapters(Fuse("a", "b"))
        model.eval()
        settings = {"fusion_dims": [4, 8], "fusion_activations": ["gelu", "gelu"]}
        record("fusion", model, ["a", "b"], "adapter-fusion", settings)

        tensors["base/states"] = states(fresh().double()).float()
        save_file(tensors, directory / "cases.safetensors")
        (directory / "cases.json").write_text(json.dumps(described, indent=2, sort_keys=True) + "\n")
        print(base, {case: float((tensors[f"{case}/states"] - tensors["base/states"]).abs().max()) for case in described})


if __name__ == "__main__":
    main()
