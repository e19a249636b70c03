"""Writes golden_sampling.json: logits as transformers' processors change them before a draw.

    pip install torch transformers
    python crates/train/tests/make_golden_sampling.py

The unit tests of generate/sampling.rs compare with it.
"""

import itertools
import json
import pathlib
import random

import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

random.seed(0)
cases = []
for temperature, top_k, top_p, min_p, penalty in itertools.product(
    (0.6, 1.0, 1.7), (None, 1, 5), (None, 0.3, 0.9), (None, 0.05, 0.4), (1.0, 1.3)
):
    logits = [round(random.gauss(0, 3), 3) for _ in range(12)]
    text = [random.randrange(12) for _ in range(5)]
    # In the order in which `generate` applies them.
    processors = LogitsProcessorList()
    if penalty != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(penalty))
    if temperature != 1.0:
        processors.append(TemperatureLogitsWarper(temperature))
    if top_k is not None:
        processors.append(TopKLogitsWarper(top_k))
    if top_p is not None:
        processors.append(TopPLogitsWarper(top_p))
    if min_p is not None:
        processors.append(MinPLogitsWarper(min_p))
    processed = processors(torch.tensor([text]), torch.tensor([logits]))[0].tolist()
    cases.append(
        {
            "logits": logits,
            "text": text,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "repetition_penalty": penalty,
            "processed": [None if value == float("-inf") else value for value in processed],
        }
    )
path = pathlib.Path(__file__).with_name("golden_sampling.json")
path.write_text("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")
