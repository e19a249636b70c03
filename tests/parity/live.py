"""Hold the `epiphyte` binary against PEFT, live and in both directions.

For tiny base models of each family and every method that PEFT has as well:

- ours:   `epiphyte train` makes an adapter, PEFT loads it and must give the numbers of `epiphyte predict` / `eval`;
- theirs: PEFT trains an adapter, `epiphyte predict` / `eval` must give PEFT's numbers on it;
- merged: `epiphyte merge` folds our adapter, transformers loads the result and must give the same numbers
  (methods that change weights).

Classifiers are compared by their logits, language models by the mean loss of a token on each of four small files.
Models, tokenizers and data are made here from seeds; nothing is downloaded.

    python live.py --epiphyte target/release/epiphyte --work /some/empty/directory
"""

import argparse
import json
import os
import random
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from peft import PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    T5ForConditionalGeneration,
    T5ForSequenceClassification,
)

from tiny import BERT, LLAMA, T5, Base, bert, decoder, peft_config, randomise, seeded, t5

LABELS, TRAIN_ROWS, EVAL_FILES, EVAL_ROWS, MAX_LENGTH = 3, 48, 4, 6, 32
LEARNING_RATE, STEPS = 1e-2, 6
WORDS = [a + b for a in ("ba", "ko", "li", "mu", "te", "zo", "ri", "sha") for b in ("n", "rd", "st", "l", "m", "ck", "ne", "p")]
SPECIAL = ["[PAD]", "[BOS]", "[EOS]", "[CLS]", "[SEP]", "[UNK]"]

# Our flags for each method of `tiny.peft_config`; targets are given per family below.
FLAGS = {
    "lora": ["--method", "lora", "--rank", "4", "--alpha", "8"],
    "lora_patterns": ["--method", "lora", "--rank", "4", "--alpha", "8", "--use-rslora", "--target-modules", "all-linear"],
    # Ranks shrink in the six steps; the scale makes up for singular values that have just left zero.
    "adalora": [
        *("--method", "adalora", "--init-r", "4", "--target-r", "2", "--alpha", "1000"),
        *("--tinit", "1", "--tfinal", "1"),
    ],
    "dora": ["--method", "dora", "--rank", "4", "--alpha", "8"],
    "vera": ["--method", "vera", "--rank", "4"],
    "ia3": ["--method", "ia3"],
    "prompt_tuning": ["--method", "prompt-tuning", "--num-virtual-tokens", "3"],
    "prefix_tuning": ["--method", "prefix-tuning", "--num-virtual-tokens", "3"],
    "prefix_tuning_mlp": [
        *("--method", "prefix-tuning", "--num-virtual-tokens", "3"),
        *("--prefix-projection", "--encoder-hidden-size", "8"),
    ],
}
MERGEABLE = ("lora", "lora_patterns", "adalora", "dora", "vera", "ia3")

FAMILIES = [
    Base("bert", bert(LABELS), BERT, "SEQ_CLS", [], pair=True),
    Base("llama", decoder(LlamaForCausalLM, LlamaConfig), LLAMA, "CAUSAL_LM", []),
    Base("llama_classifier", decoder(LlamaForSequenceClassification, LlamaConfig, num_labels=LABELS), LLAMA, "SEQ_CLS", []),
    Base(
        "t5",
        # PEFT's prefixes fit no other size of heads.
        t5(T5ForConditionalGeneration, eos_token_id=2, d_kv=8),
        T5,
        "SEQ_2_SEQ_LM",
        [],
        targets=[],
        methods=["lora", "lora_patterns", "ia3", "prompt_tuning", "prefix_tuning", "prefix_tuning_mlp"],
    ),
    Base(
        "t5_classifier",
        t5(T5ForSequenceClassification, num_labels=LABELS, eos_token_id=2),
        T5,
        "SEQ_CLS",
        [],
        head="classification_head",
        methods=["lora", "lora_patterns", "ia3"],
    ),
]


@dataclass
class Check:
    """One comparison and its outcome."""

    base: str
    method: str
    direction: str
    difference: float | None
    problem: str = ""


class Failed(Exception):
    """A command that should have worked did not."""


def make_tokenizer(base: Base, directory: Path) -> PreTrainedTokenizerFast:
    """A word-level tokenizer with BERT's `[CLS] a [SEP] b [SEP]`, with T5's end-of-text token, or with a beginning-of-text token."""
    tokens = SPECIAL + WORDS
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ids = [(token, tokens.index(token)) for token in ("[CLS]", "[SEP]", "[BOS]", "[EOS]")]
    if base.names is BERT:
        tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ids)
        names = {"cls_token": "[CLS]", "sep_token": "[SEP]"}
    elif base.names is T5:
        tokenizer.post_processor = processors.TemplateProcessing("$A [EOS]", "$A [EOS] $B [EOS]", ids)
        names = {"eos_token": "[EOS]"}
    else:
        tokenizer.post_processor = processors.TemplateProcessing("[BOS] $A", "[BOS] $A $B", ids)
        names = {"bos_token": "[BOS]", "eos_token": "[EOS]"}
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=64, **names
    )
    wrapped.save_pretrained(directory)
    return wrapped


def make_rows(base: Base, count: int, generator: random.Random) -> list[dict]:
    """Rows of random words; a label says which third of the vocabulary the first word is from."""

    def text():
        return " ".join(generator.choices(WORDS, k=generator.randint(3, 9)))

    if base.task == "CAUSAL_LM":
        return [{"text": text()} for _ in range(count)]
    if base.task == "SEQ_2_SEQ_LM":
        return [{"source": text(), "target": text()} for _ in range(count)]
    rows = []
    for _ in range(count):
        row = {"sentence1": text()} | ({"sentence2": text()} if base.pair else {})
        first = WORDS.index(row["sentence1"].split()[0])
        rows.append(row | {"label": first * LABELS // len(WORDS)})
    return rows


def write_rows(path: Path, rows: list[dict]) -> None:
    """JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


class Fixture:
    """A base model with its tokenizer and data on disk, and PyTorch's view of them."""

    def __init__(self, base: Base, directory: Path):
        self.base = base
        self.directory = directory
        self.model_directory = directory / "base"
        model = base.make()
        randomise(model.named_parameters(), seeded("live", base.name))
        model.save_pretrained(self.model_directory)
        self.tokenizer = make_tokenizer(base, self.model_directory)
        generator = random.Random(base.name)
        write_rows(directory / "train.jsonl", make_rows(base, TRAIN_ROWS, generator))
        self.eval_sets = {}
        for i in range(EVAL_FILES):
            path = directory / f"eval-{i}.jsonl"
            self.eval_sets[path] = make_rows(base, EVAL_ROWS, generator)
            write_rows(path, self.eval_sets[path])

    def load(self, directory: Path | None = None):
        """The base model, or a merged one from `directory`."""
        return type(self.base.make()).from_pretrained(
            directory or self.model_directory, attn_implementation=self.base.attention
        ).eval()

    def task_flags(self) -> list[str]:
        """What `epiphyte` must be told about the task where no adapter of ours says it."""
        if self.base.task == "CAUSAL_LM":
            return ["--task", "causal-lm", "--text-columns", "text", "--packing=false"]
        if self.base.task == "SEQ_2_SEQ_LM":
            return ["--task", "seq2seq", "--source-column", "source", "--target-column", "target"]
        columns = "sentence1,sentence2" if self.base.pair else "sentence1"
        return ["--task", "sequence-classification", "--text-columns", columns, "--label-column", "label"]

    def encode(self, row: dict) -> dict[str, torch.Tensor]:
        """Keyword arguments of a Hugging Face model for one row; text for a language model ends with `[EOS]`."""
        if self.base.task == "CAUSAL_LM":
            ids = torch.tensor([self.tokenizer(row["text"])["input_ids"] + [self.tokenizer.eos_token_id]])
            return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
        if self.base.task == "SEQ_2_SEQ_LM":
            encoding = self.tokenizer(row["source"], return_tensors="pt", return_token_type_ids=False)
            return dict(encoding) | {"labels": torch.tensor([self.tokenizer(row["target"])["input_ids"]])}
        texts = (row["sentence1"], row["sentence2"]) if self.base.pair else (row["sentence1"],)
        encoding = self.tokenizer(*texts, return_tensors="pt", return_token_type_ids=self.base.pair)
        return dict(encoding) | {"labels": torch.tensor([row["label"]])}

    def numbers(self, model, per_row_extra: int) -> torch.Tensor:
        """Logits `[rows, labels]`, or the mean loss of a predicted token of each file `[files]`.

        Rows are run one by one, so without padding. `per_row_extra` is 1 where the first token of a row is
        predicted too (prompt tuning), else 0.
        """
        if isinstance(model, PeftModel) and model.peft_type == "ADALORA":
            # Around this model PEFT adds a penalty to the loss, and fails where the adapter is not trainable.
            model = model.base_model.model
        numbers = []
        for rows in self.eval_sets.values():
            with torch.no_grad():
                outputs = [(encoded, model(**encoded)) for encoded in map(self.encode, rows)]
            if self.base.task == "SEQ_CLS":
                numbers.extend(output.logits for _, output in outputs)
            else:
                # A decoder of its own predicts the first target too.
                extra = 1 if self.base.task == "SEQ_2_SEQ_LM" else per_row_extra
                counts = [encoded["labels"].shape[1] - 1 + extra for encoded, _ in outputs]
                total = sum(output.loss * count for (_, output), count in zip(outputs, counts))
                numbers.append(total.reshape(1) / sum(counts))
        return torch.cat(numbers)


class Epiphyte:
    """The binary under test."""

    def __init__(self, binary: Path):
        self.binary = binary

    def run(self, *arguments) -> str:
        """Standard output of a command that must succeed."""
        command = [str(self.binary), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise Failed(f"{' '.join(command)}\n{done.stderr[-2000:]}")
        return done.stdout

    def train(self, fixture: Fixture, method: str, output: Path) -> None:
        """A few steps of `method`."""
        data = ["--train-data", fixture.directory / "train.jsonl", "--eval-data", next(iter(fixture.eval_sets))]
        targets = []
        if method == "lora":
            targets = ["--target-modules", ",".join(fixture.base.names.lora)]
        settings = ["--max-steps", STEPS, "--batch-size", 8, "--learning-rate", LEARNING_RATE, "--max-length", MAX_LENGTH]
        self.run(
            *("train", "--model", fixture.model_directory, *fixture.task_flags(), *data),
            *(*FLAGS[method], *targets, *settings, "--seed", 7, "--output", output),
        )

    def numbers(self, fixture: Fixture, model: list, flags: list[str]) -> torch.Tensor:
        """What `Fixture.numbers` gives, from `predict` or `eval`."""
        numbers = []
        for path in fixture.eval_sets:
            if fixture.base.task == "SEQ_CLS":
                predictions = path.with_suffix(".predictions.jsonl")
                self.run("predict", *model, "--data", path, *flags, "--output", predictions)
                numbers.extend(json.loads(line)["logits"] for line in predictions.read_text().splitlines())
                predictions.unlink()
            else:
                numbers.append(json.loads(self.run("eval", *model, "--data", path, *flags, "--json"))["loss"])
        return torch.tensor(numbers)


def train_with_peft(fixture: Fixture, method: str, output: Path):
    """A few steps of AdamW from random values with PEFT, saved; returns the model."""
    model = get_peft_model(fixture.load(), peft_config(fixture.base, method)).eval()
    trainable = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    randomise(trainable, seeded("live", fixture.base.name, method), method)
    optimizer = torch.optim.AdamW([value for _, value in trainable], lr=LEARNING_RATE)
    for line in (fixture.directory / "train.jsonl").read_text().splitlines()[:STEPS]:
        optimizer.zero_grad()
        model(**fixture.encode(json.loads(line))).loss.backward()
        optimizer.step()
    model.save_pretrained(output, save_embedding_layers=False)
    return model


def largest_difference(left: torch.Tensor, right: torch.Tensor) -> float:
    """Of two tensors that must have one shape."""
    if left.shape != right.shape:
        raise Failed(f"shapes differ: {tuple(left.shape)} and {tuple(right.shape)}")
    return float((left - right).abs().max())


def check_method(epiphyte: Epiphyte, fixture: Fixture, method: str):
    """Yield the comparisons of one method on one base."""
    extra = int(method == "prompt_tuning")
    ours, theirs, merged = (fixture.directory / f"{method}-{name}" for name in ("ours", "theirs", "merged"))
    base_numbers = fixture.numbers(fixture.load(), 0)

    def adapted(adapter: Path) -> list:
        return ["--model", fixture.model_directory, "--adapter", adapter]

    def compare(direction: str, measure) -> Check:
        """`measure` gives our numbers and PyTorch's; both must also differ from those of the base alone."""
        try:
            left, right = measure()
            difference = largest_difference(left, right)
            idle = largest_difference(right, base_numbers) < 1e-3
        except (Failed, OSError, ValueError, KeyError, RuntimeError) as error:
            return Check(fixture.base.name, method, direction, None, f"{type(error).__name__}: {error}")
        return Check(fixture.base.name, method, direction, difference, "the adapter changes nothing" if idle else "")

    def measure_ours():
        epiphyte.train(fixture, method, ours)
        model = PeftModel.from_pretrained(fixture.load(), ours).eval()
        return epiphyte.numbers(fixture, adapted(ours), []), fixture.numbers(model, extra)

    def measure_theirs():
        model = train_with_peft(fixture, method, theirs)
        found = epiphyte.numbers(fixture, adapted(theirs), fixture.task_flags())
        return found, fixture.numbers(model, extra)

    def measure_merged():
        epiphyte.run("merge", *adapted(ours), "--output", merged)
        found = epiphyte.numbers(fixture, adapted(ours), [])
        return found, fixture.numbers(fixture.load(merged), extra)

    yield compare("ours", measure_ours)
    yield compare("theirs", measure_theirs)
    if method in MERGEABLE:
        yield compare("merged", measure_merged)


def main() -> int:
    """Run every comparison, print the table, and fail if one fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epiphyte", type=Path, required=True, help="the binary")
    parser.add_argument("--work", type=Path, required=True, help="an empty directory for models, data and adapters")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest difference of a logit or a loss")
    parser.add_argument("--only", default="", help="only cases whose `base/method` contains this")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()

    epiphyte = Epiphyte(arguments.epiphyte.resolve())
    checks = []
    print(f"{'base':<18}{'method':<20}{'direction':<11}{'difference':>12}")
    for base in FAMILIES:
        methods = [method for method in base.methods or FLAGS if arguments.only in f"{base.name}/{method}"]
        if not methods:
            continue
        directory = arguments.work / base.name
        directory.mkdir(parents=True)
        fixture = Fixture(base, directory)
        for method in methods:
            for check in check_method(epiphyte, fixture, method):
                if not check.problem and not check.difference <= arguments.tolerance:
                    check.problem = f"more than {arguments.tolerance:.0e}"
                shown = "-" if check.difference is None else f"{check.difference:.1e}"
                print(f"{check.base:<18}{check.method:<20}{check.direction:<11}{shown:>12}  {check.problem}", flush=True)
                checks.append(check)
    failed = sum(bool(check.problem) for check in checks)
    print(f"{len(checks) - failed} of {len(checks)} comparisons agree within {arguments.tolerance:.0e}")
    return int(failed > 0 or not checks)


if __name__ == "__main__":
    sys.exit(main())
