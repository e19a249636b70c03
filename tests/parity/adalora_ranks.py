"""Make `golden/adalora_ranks.safetensors`: how PEFT's rank allocator prunes, step by step.

A tiny BERT with AdaLoRA is moved at random instead of being trained: in each step every trained value
gets noise (in place of the optimizer's step) and every gradient is drawn at random, then
`AdaLoraModel.update_and_allocate` runs. The file holds for each step `t`, counted from 1,

    {t}/value/<key>    the values before the allocation, {t}/grad/<key> the gradients
    {t}/E/<path>       the singular values after it
    {t}/kept/<path>    1 for each triplet that is kept, 0 for the others; absent before the first allocation

and `sensitivity/<key>`, `uncertainty/<key>`, the averages after the last step that updates them.

    python adalora_ranks.py
"""

from pathlib import Path

import torch
from peft import AdaLoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import BertConfig, BertForSequenceClassification

from tiny import seeded

TOTAL, SETTINGS = 16, {"init_r": 4, "target_r": 2, "tinit": 2, "tfinal": 3, "deltaT": 2}


def make() -> dict[str, torch.Tensor]:
    """All tensors of the file."""
    config = BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=24,
        max_position_embeddings=32,
        num_labels=3,
    )
    settings = AdaLoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], total_step=TOTAL, **SETTINGS)
    model = get_peft_model(BertForSequenceClassification(config), settings)
    allocator = model.base_model.rankallocator
    names = {name: name.removesuffix(".default") for name, _ in model.base_model.model.named_parameters() if "lora_" in name}
    trained = {name: value for name, value in model.base_model.model.named_parameters() if name in names and value.requires_grad}
    generator = seeded("adalora_ranks")
    tensors = {}
    for step in range(1, TOTAL + 1):
        for name, value in trained.items():
            value.data += 0.1 * torch.randn(value.shape, generator=generator)
            value.grad = torch.randn(value.shape, generator=generator)
            tensors[f"{step}/value/{names[name]}"] = value.data.clone()
            tensors[f"{step}/grad/{names[name]}"] = value.grad.clone()
        if step == TOTAL - SETTINGS["tfinal"]:
            # The allocator forgets the averages in this step, without updating them before.
            for name in trained:
                tensors[f"sensitivity/{names[name]}"] = allocator.exp_avg_ipt[name].clone()
                tensors[f"uncertainty/{names[name]}"] = allocator.exp_avg_unc[name].clone()
        model.base_model.update_and_allocate(step)
        pattern = model.peft_config["default"].rank_pattern or {}
        for name, value in trained.items():
            if "lora_E" in name:
                path = names[name].removesuffix(".lora_E")
                tensors[f"{step}/E/{path}"] = value.data.clone()
                if name in pattern:
                    tensors[f"{step}/kept/{path}"] = torch.tensor(pattern[name], dtype=torch.float32)
    return tensors


if __name__ == "__main__":
    save_file(make(), Path(__file__).parent / "golden" / "adalora_ranks.safetensors", metadata={"format": "pt"})
