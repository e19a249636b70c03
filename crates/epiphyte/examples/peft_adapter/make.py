"""Trains the adapter next to this file with HF PEFT, for the example `peft_adapter`.

    python crates/epiphyte/examples/peft_adapter/make.py     # torch, transformers, peft

LoRA of rank 2 on the quickstart's base model, which tells urgent messages from routine ones.
"""

import csv
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

HERE = Path(__file__).parent
QUICKSTART = HERE.parents[1] / "assets/quickstart"
LABELS = ["routine", "urgent"]

torch.manual_seed(0)
tokenizer = AutoTokenizer.from_pretrained(QUICKSTART / "base")
model = AutoModelForSequenceClassification.from_pretrained(QUICKSTART / "base", num_labels=2)
model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=2, lora_alpha=4))


def rows(name):
    with open(QUICKSTART / name, newline="") as file:
        return [(row["text"], LABELS.index(row["label"])) for row in csv.DictReader(file)]


def logits(text):
    return model(torch.tensor([tokenizer(text)["input_ids"]])).logits


optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
train = rows("messages-train.csv")
for _ in range(2):
    for first in range(0, len(train), 10):
        batch = train[first : first + 10]
        outputs = torch.cat([logits(text) for text, _ in batch])
        loss = torch.nn.functional.cross_entropy(outputs, torch.tensor([label for _, label in batch]))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

model.eval()
dev = rows("messages-dev.csv")
with torch.no_grad():
    right = sum(int(logits(text).argmax()) == label for text, label in dev)
    print(f"{right} of {len(dev)} right")
    for text in ("The Swallow is on fire near Gull Rock.", "Potatoes arrive on Friday."):
        print(text, [round(value, 4) for value in logits(text)[0].tolist()])

# PEFT also writes a README.md, a form to fill in.
with tempfile.TemporaryDirectory() as directory:
    model.peft_config["default"].base_model_name_or_path = "epiphyte-quickstart/base"
    model.save_pretrained(directory)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (HERE / name).write_bytes((Path(directory) / name).read_bytes())
