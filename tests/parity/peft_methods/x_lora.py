"""X-LoRA over three small experts of LoRA.

PEFT makes the experts' layers from directories, and leaves parts of the classifier out of its file. So the file gets
the classifier and the experts, which PEFT reads, and the configuration the experts' settings, which it passes over.
"""

import os
import tempfile

import torch
from peft import LoraConfig, XLoraConfig, get_peft_model

from .case import Case


def experts(base):
    """Directories of experts, named as in every other place: the script goes where they are."""
    os.chdir(tempfile.mkdtemp())
    names = base.names.lora
    settings = [
        dict(r=2, target_modules=names[:1]),
        dict(r=3, lora_alpha=4, target_modules=names + base.names.ia3_feedforward),
        dict(r=2, lora_alpha=3, use_rslora=True, target_modules=names[-1:]),
    ]
    generator = torch.Generator().manual_seed(5)
    for number, own in enumerate(settings):
        model = get_peft_model(base.make(), LoraConfig(lora_dropout=0.0, task_type=base.task, **own))
        with torch.no_grad():
            for name, value in model.named_parameters():
                if "lora_" in name:
                    value.copy_(0.2 * torch.randn(value.shape, generator=generator))
        model.save_pretrained(str(number))
    return {str(number): str(number) for number in range(len(settings))}


def x_lora(base, common):
    return XLoraConfig(
        hidden_size=base.make().config.hidden_size,
        adapters=experts(base),
        xlora_depth=2,
        xlora_size=6,
        softmax_temperature=0.7,
        top_k_lora=2,
        global_scaling_weight=1.5,
        **common,
    )


def x_lora_layers(base, common):
    return XLoraConfig(
        hidden_size=base.make().config.hidden_size,
        adapters=experts(base),
        layerwise_scalings=True,
        enable_softmax=False,
        enable_softmax_topk=True,
        top_k_lora=2,
        **common,
    )


def x_lora_trained(base, common):
    return XLoraConfig(
        hidden_size=base.make().config.hidden_size,
        adapters=experts(base),
        xlora_depth=3,
        xlora_size=4,
        xlora_dropout_p=0.0,
        enable_softmax=False,
        use_trainable_adapters=True,
        scaling_pass_value=0.4,
        **common,
    )


def no_cache(model):
    """X-LoRA refuses models with a cache."""
    model.config.use_cache = False


def whole(model):
    """Classifier and experts, as PEFT's own model names them."""
    own = {name: value for name, value in model.state_dict().items() if "lora_" in name.removeprefix("base_model.lora_model")}
    return {name: value.clone() for name, value in own.items() if "base_layer" not in name}


def settings(model):
    keys = ("r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora")
    own = {name: config.to_dict() for name, config in model.peft_config.items() if name != "default"}
    own = {name: {key: config[key] for key in keys} for name, config in own.items()}
    return {"xlora_experts": {name: it | {"target_modules": sorted(it["target_modules"])} for name, it in own.items()}}


EXPERTS = tuple(f"lora_{matrix}.{number}.weight" for matrix in "AB" for number in range(3))
HOW = dict(extra=whole, settings=settings, prepare=no_cache)
CASES = {
    "x_lora": Case(x_lora, bases=("llama",), frozen=EXPERTS, **HOW),
    "x_lora_layers": Case(x_lora_layers, bases=("qwen2",), frozen=EXPERTS, **HOW),
    "x_lora_trained": Case(x_lora_trained, bases=("llama",), **HOW),
}
