"""One measurement of PyTorch + transformers + PEFT: prints one JSON line. `run.py` starts it as a child process.

Random weights, AdamW over what the method trains, fixed token ids, no dropout. In bf16 the base is bf16 and PEFT
keeps its adapters in f32, as it does by itself.
"""

import os
import time

START = float(os.environ.get("BENCH_START", time.time()))

import argparse
import json
import resource
import statistics
import warnings

import torch
import transformers
from peft import IA3Config, LoraConfig, PrefixTuningConfig, get_peft_model
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from works import SHAPES, WORKS, Work

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
BOTTLENECK, VIRTUAL_TOKENS, RANK = 64, 20, 8


def build_base(work: Work, dtype: torch.dtype):
    """The model of a work with random weights."""
    shape = SHAPES[work.model]
    if work.model.startswith("llama"):
        return LlamaForCausalLM._from_config(LlamaConfig(**shape, attention_dropout=0.0, use_cache=False), dtype=dtype)
    config = BertConfig(**shape, num_labels=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return BertForSequenceClassification._from_config(config, dtype=dtype)


class Houlsby(torch.nn.Module):
    """A bottleneck with its skip connection, put behind a sub-layer's dropout as a forward hook."""

    def __init__(self, width: int):
        super().__init__()
        self.down = torch.nn.Linear(width, BOTTLENECK)
        self.up = torch.nn.Linear(BOTTLENECK, width)

    def forward(self, _module, _arguments, output):
        return output + self.up(torch.nn.functional.gelu(self.down(output), approximate="tanh"))


def adapt(model, work: Work):
    """Apply the method; returns the model, whose trainable parameters require gradients."""
    bert = work.model != "llama-0.5b"
    task = {"task_type": "SEQ_CLS" if bert else "CAUSAL_LM"}
    match work.method:
        case "lora":
            targets = ["query", "value"] if bert else ["q_proj", "v_proj"]
            return get_peft_model(model, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=targets, **task))
        case "ia3":
            ff = ["output.dense"]
            config = IA3Config(target_modules=["key", "value", *ff], feedforward_modules=ff, **task)
            return get_peft_model(model, config)
        case "prefix-tuning":
            return get_peft_model(model, PrefixTuningConfig(num_virtual_tokens=VIRTUAL_TOKENS, **task))
        case "full":
            return model
        case "bitfit":
            for name, value in model.named_parameters():
                value.requires_grad_(name.endswith(".bias") or name.startswith("classifier."))
            return model
        case "houlsby":
            for name, value in model.named_parameters():
                value.requires_grad_("LayerNorm" in name or name.startswith("classifier."))
            for layer in model.bert.encoder.layer:
                for place in (layer.attention.output, layer.output):
                    place.adapter = Houlsby(model.config.hidden_size)
                    place.dropout.register_forward_hook(place.adapter)
            return model
    raise ValueError(f"unknown method {work.method}")


def make_batches(work: Work, vocabulary: int, data: str | None) -> list[dict]:
    """The batch of a work, or all batches of a token file, each padded to its longest row."""
    if data is None:
        ids = torch.arange(work.rows * work.length).reshape(work.rows, work.length) * 7919 % (vocabulary - 1) + 1
        labels = ids if work.model == "llama-0.5b" else torch.arange(work.rows) % 2
        return [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}]
    with open(data, encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]

    def padded(rows: list[dict]) -> dict:
        def pad(key):
            return torch.nn.utils.rnn.pad_sequence([torch.tensor(row[key]) for row in rows], batch_first=True)

        ids = pad("input_ids")
        labels = torch.tensor([row["label"] for row in rows])
        mask = (ids != 0).long()
        return {"input_ids": ids, "token_type_ids": pad("token_type_ids"), "attention_mask": mask, "labels": labels}

    return [padded(rows[first : first + work.rows]) for first in range(0, len(rows), work.rows)]


def measure(work: Work, dtype: str, steps: int, warmup: int, data: str | None) -> dict:
    """Train `warmup + steps` steps and time the last `steps` of them."""
    torch.manual_seed(0)
    model = adapt(build_base(work, DTYPES[dtype]), work).train()
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=1e-4)
    batches = make_batches(work, model.config.vocab_size, data)
    times, tokens, first_step = [], 0, 0.0
    for step in range(warmup + steps):
        batch = batches[step % len(batches)]
        start = time.perf_counter()
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        seconds = time.perf_counter() - start
        if step == 0:
            first_step = time.time() - START
        if step >= warmup:
            times.append(seconds)
            tokens += int(batch["attention_mask"].sum())
    return {
        "median_step_s": statistics.median(times),
        "tokens_per_s": tokens / sum(times),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "first_step_s": first_step,
        "loss": loss.item(),
    }


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", required=True, choices=list(WORKS))
    parser.add_argument("--dtype", default="f32", choices=list(DTYPES))
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--data", help="JSONL of input_ids, token_type_ids and label, for works on real text")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(arguments.threads)
    print(json.dumps(measure(WORKS[arguments.work], arguments.dtype, arguments.steps, arguments.warmup, arguments.data)))


if __name__ == "__main__":
    main()
