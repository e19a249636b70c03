"""Read adapters of every type that PEFT has, with every value of their configurations that changes the result.

For each type and variant (`sweep_variants.py`), on tiny BERT, RoBERTa, Llama, GPT-2 and T5 bases, PEFT itself makes an
adapter whose trained values are random, saves it, and loads it again: what it then computes is what the file means.
Each file is loaded here and must give the same logits, or be refused with a reason; and what is written here again must
have the same tensors and give PEFT the same logits. What PEFT cannot make, save or load again does not count.

    cargo build --workspace
    python sweep.py --xtask ../../target/debug/xtask                    # everything
    python sweep.py --xtask ../../target/debug/xtask --usual            # the usual settings of each type, and trained biases
    python sweep.py --xtask ../../target/debug/xtask --only LORA,IA3 --bases llama

With `--results FILE` every outcome is written as JSON, from which `sweep_table.py` makes the documentation's table.
"""

import argparse
import contextlib
import copy
import io
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import peft
import torch
import transformers
from peft import PeftModel, get_peft_model
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.eva import initialize_lora_eva_weights
from peft.tuners.lora.loraga import preprocess_loraga
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, T5ForConditionalGeneration
from transformers import GPT2LMHeadModel, RobertaConfig, RobertaForSequenceClassification

from live import make_tokenizer
from peft_methods import cases
from sweep_variants import CONFIGS, CONVERTED, TYPES, USUAL, WITHOUT_TARGETS, targets, uncovered, variants
from tiny import BERT, GPT2, LLAMA, T5, VOCABULARY, Base, bert, decoder, gpt2, randomise, roberta, seeded, t5

TOLERANCE = 2e-4
LENGTHS = [11, 6, 9]

BASES = [
    Base("bert", bert(3), BERT, "SEQ_CLS", LENGTHS),
    Base("roberta", roberta(RobertaForSequenceClassification, RobertaConfig), BERT, "SEQ_CLS", LENGTHS),
    Base("llama", decoder(LlamaForCausalLM, LlamaConfig), LLAMA, "CAUSAL_LM", LENGTHS),
    Base("gpt2", gpt2(GPT2LMHeadModel), GPT2, "CAUSAL_LM", LENGTHS),
    # PEFT's prefixes fit no other size of heads.
    Base("t5", t5(T5ForConditionalGeneration, eos_token_id=2, d_kv=8), T5, "SEQ_2_SEQ_LM", LENGTHS, targets=[5, 7, 4]),
]


@dataclass
class Result:
    """What became of a variant on a base."""

    type: str
    variant: str
    base: str
    # equal, refused, differs, or skipped where PEFT itself cannot.
    outcome: str
    detail: str = ""


@contextlib.contextmanager
def silently():
    """Without what PEFT prints."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


class Side:
    """PEFT's side on one base: the base model, the rows that it is run on, and the files that some settings name."""

    def __init__(self, base: Base, directory: Path):
        self.base, self.directory = base, directory
        model = base.make()
        randomise(model.named_parameters(), seeded("sweep", base.name))
        model.save_pretrained(directory / "base")
        self.model = type(model).from_pretrained(directory / "base", attn_implementation=base.attention).eval()
        self.rows = self._rows()
        (directory / "rows.json").write_text(json.dumps(self.rows))
        make_tokenizer(base, directory / "tokenizer")
        tokens = 6 if base.task == "SEQ_2_SEQ_LM" else 3
        shapes = {"prefix_task_cols": (2, tokens, 1), "prefix_task_rows": (2, 1, 32), "prompt_embeddings": (tokens, 32)}
        sources = {name: torch.randn(shape, generator=seeded("sources")) for name, shape in shapes.items()}
        save_file(sources, directory / "source_prompts.safetensors")

    def _rows(self) -> dict:
        """Rows of random tokens, of which the first two texts have token 7; targets where there are some."""
        base, generator = self.base, seeded("sweep", self.base.name)
        ids = [torch.randint(12, VOCABULARY, (n,), generator=generator).tolist() for n in LENGTHS]
        ids[0][4] = ids[1][2] = 7
        rows = {"input_ids": ids}
        if base.task == "SEQ_CLS":
            rows["classes"] = 3
        if base.targets:
            rows["labels"] = [torch.randint(12, VOCABULARY, (n,), generator=generator).tolist() for n in base.targets]
        return rows

    def inputs(self, row: int, labels: bool = False) -> dict:
        """What a model is given of a row; with `labels`, always what it is to predict."""
        ids = self.rows["input_ids"][row]
        inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
        if "labels" in self.rows:
            inputs["labels"] = torch.tensor([self.rows["labels"][row]])
        elif labels:
            inputs["labels"] = torch.tensor([row]) if "classes" in self.rows else inputs["input_ids"]
        return inputs

    def logits(self, model) -> torch.Tensor:
        """The logits of each row, run alone; of a language model, those of its own tokens."""
        found = []
        for row in range(len(LENGTHS)):
            inputs = self.inputs(row)
            own = inputs.get("labels", inputs["input_ids"]).shape[1]
            if isinstance(model, PeftModel) and model.peft_type == "ADALORA" and "labels" in inputs:
                # With labels it asks for what only its training has.
                inputs["decoder_input_ids"] = self.model.prepare_decoder_input_ids_from_labels(inputs.pop("labels"))
            if isinstance(model, PeftModel) and model.peft_type in ("POLY", "MULTITASK_PROMPT_TUNING"):
                inputs["task_ids"] = torch.tensor([0])
            with torch.no_grad():
                output = model(**inputs).logits[0]
            found.append(output.flatten() if "classes" in self.rows else output[-own:].flatten())
        return torch.cat(found)

    def fresh(self, kind: str = ""):
        """The base model, unchanged."""
        model = copy.deepcopy(self.model)
        # X-LoRA demands it.
        model.config.use_cache = model.config.use_cache and kind != "XLORA"
        return model

    def make(self, kind: str, variant: str, settings: dict, directory: Path) -> torch.Tensor:
        """Make, save and load again an adapter; returns its logits."""
        config = CONFIGS[kind](**self.settings(kind, settings, directory))
        torch.manual_seed(0)
        model = adapted(self, kind, variant, config)
        trainable = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
        if not trainable:
            raise ValueError("PEFT trains nothing here")
        how = {}
        if CONVERTED in variant:
            start = directory.with_name(f"{directory.name}-start")
            model.peft_config["default"].init_lora_weights = True
            model.save_pretrained(start)
            how = {"path_initial_model_for_weight_conversion": str(start)}
        if (kind, variant) != ("ADALORA", "rank_pattern"):
            randomise(trainable, seeded("sweep", kind, self.base.name), method_of(kind))
        model.eval()
        model.save_pretrained(directory, **how)
        before, after = self.logits(model), self.logits(self.loaded(directory))
        if not torch.isfinite(before).all():
            raise ValueError("its own logits are not finite")
        if not (before - after).abs().max() <= TOLERANCE:
            raise ValueError(f"what it loads differs from what it saved by {(before - after).abs().max():.1e}")
        return after

    def settings(self, kind: str, settings: dict, directory: Path) -> dict:
        """All settings of a variant."""
        common = {"task_type": self.base.task}
        if kind not in WITHOUT_TARGETS:
            first, _ = targets(kind, self.base)
            usual = {"IA3": self.base.names.ia3}
            default = self.base.names.lora if first in self.base.names.lora else [first]
            common["target_modules"] = usual.get(kind, default)
        found = common | USUAL.get(kind, {}) | settings
        for key in ("tokenizer_name_or_path", "prompt_tuning_init_state_dict_path"):
            if key in found:
                found[key] = str(self.directory / found[key])
        if kind == "XLORA":
            found["adapters"] = experts(self, found.get("adapters", 2), directory.with_name(f"{directory.name}-experts"))
        return found

    def loaded(self, directory: Path):
        """The adapter as PEFT loads it."""
        torch.manual_seed(1)
        kind = json.loads((directory / "adapter_config.json").read_text())["peft_type"]
        return PeftModel.from_pretrained(self.fresh(kind), directory).eval()


def adapted(side: Side, kind: str, variant: str, config):
    """The adapted model, after what some settings have done before training or in it."""
    model, start = side.fresh(kind), getattr(config, "init_lora_weights", None)
    if start == "corda":
        preprocess_corda(model, config, run_model=lambda: [side.logits(model) for _ in range(20)])
    if start == "lora_ga":
        preprocess_loraga(model, config, train_step=lambda: model(**side.inputs(0, labels=True)).loss.backward())
    model = get_peft_model(model, config)
    if start == "eva":
        # Each time another row, so that there are more directions than ranks.
        rows = [{name: value for name, value in side.inputs(row).items()} for row in (0, 1, 2)]
        initialize_lora_eva_weights(model, rows, show_progress_bar=False)
    if (kind, variant) == ("ADALORA", "rank_pattern"):
        generator = seeded("ranks")
        for step in range(config.total_step):
            for name, value in model.named_parameters():
                if "lora_" in name:
                    value.data.copy_(0.1 * torch.randn(value.shape, generator=generator))
                    value.grad = torch.randn(value.shape, generator=generator)
            model.base_model.update_and_allocate(step)
    return model


def experts(side: Side, count: int, directory: Path) -> dict[str, str]:
    """Adapters of LoRA for X-LoRA, by name."""
    found = {}
    for number in range(count):
        own = directory / str(number)
        config = CONFIGS["LORA"](r=4, target_modules=side.base.names.lora, init_lora_weights=False)
        get_peft_model(side.fresh(), config).save_pretrained(own)
        # X-LoRA finds them by these names only.
        found[str(number)] = str(own)
    return found


def method_of(kind: str) -> str | None:
    """The golden case of a type, whose values are like trained ones."""
    names = {"LORA": "dora", "IA3": "ia3", "PREFIX_TUNING": "prefix_tuning", "PROMPT_TUNING": "prompt_tuning"}
    name = names.get(kind, kind.lower())
    return name if name in cases() else None


def sweep(work: Path, xtask: Path, base_name: str, kinds: list[str], usual: bool) -> list[Result]:
    """All variants of these types on one base."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    # The card of a model costs more time than the model.
    PeftModel.create_or_update_model_card = lambda *_: None
    base = next(base for base in BASES if base.name == base_name)
    directory = Path(tempfile.mkdtemp(dir=work, prefix=f"{base_name}-"))
    with silently():
        side = Side(base, directory)
    results, made = [], {}
    for kind in kinds:
        every = variants(kind, base)
        if usual:
            every = {variant: every[variant] for variant in ("", "bias=all") if variant in every}
        for variant, settings in every.items():
            own = directory / "adapters" / f"{len(made) + len(results)}-{kind}"
            try:
                with silently():
                    expected = side.make(kind, variant, settings, own)
                made[str(own)] = (kind, variant, expected)
            except Exception as error:  # noqa: BLE001: whatever stops PEFT, the variant is none of its own
                results.append(Result(kind, variant, base_name, "skipped", said(error)))
                shutil.rmtree(own, ignore_errors=True)
    if not made:
        return results
    again, list_file = directory / "again", directory / "adapters.txt"
    list_file.write_text("\n".join(made))
    command = [str(xtask), "adapter-logits", "--base", str(directory / "base"), "--rows", str(directory / "rows.json")]
    done = subprocess.run([*command, "--save", str(again), "--list", str(list_file)], capture_output=True, text=True)
    lines = {found["adapter"]: found for found in map(json.loads, done.stdout.splitlines())}
    for own, (kind, variant, expected) in made.items():
        found = lines.get(own, {"problem": f"no answer: {done.stderr[-300:]}", "crashed": True})
        outcome, detail = judge(side, found, expected, Path(own), again / Path(own).name)
        results.append(Result(kind, variant, base_name, outcome, detail.replace(own, "ADAPTER")))
    shutil.rmtree(directory)
    return results


def judge(side: Side, found: dict, expected: torch.Tensor, own: Path, again: Path) -> tuple[str, str]:
    """Compare what was found for an adapter with PEFT's logits, in both directions."""
    if "crashed" in found:
        return "differs", found["problem"]
    if "problem" in found:
        return "refused", found["problem"]
    ours = torch.tensor(found["logits"])
    if ours.shape != expected.shape:
        return "differs", "the logits have other shapes"
    if not (ours - expected).abs().max() <= TOLERANCE:
        return "differs", f"{(ours - expected).abs().max():.1e} apart"
    try:
        with silently():
            back = side.logits(side.loaded(again))
    except Exception as error:  # noqa: BLE001
        return "differs", f"PEFT cannot load it again: {said(error)}"
    if not (back - expected).abs().max() <= TOLERANCE:
        return "differs", f"{(back - expected).abs().max():.1e} apart when PEFT loads it again"
    name = "adapter_model.safetensors"
    before, after = load_file(own / name), load_file(again / name)
    others = [key for key in sorted({*before, *after}) if not same(before.get(key), after.get(key))]
    return "equal", f"{len(others)} other tensors when written again, such as {others[0]}" if others else ""


def said(error: Exception) -> str:
    """What stopped PEFT, in short and on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:100]


def same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    """Whether two tensors have the same type, shape and values."""
    return one is not None and other is not None and one.dtype == other.dtype and torch.equal(one, other)


def by_type(results: list[Result]) -> dict:
    """Outcomes as `{type: {base: {outcome: ..}}}`: of what is equal the number, of the rest each variant's detail."""
    found: dict = {}
    for it in results:
        outcomes = found.setdefault(it.type, {}).setdefault(it.base, {"equal": 0})
        if it.outcome == "equal":
            outcomes["equal"] += 1
        if it.outcome != "equal" or it.detail:
            name = "written with other tensors" if it.outcome == "equal" else it.outcome
            outcomes.setdefault(name, {})[it.variant] = it.detail
    return found


def main() -> int:
    """Run the sweep, print every outcome but `equal`, and fail if any differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--xtask", type=Path, required=True, help="the program `xtask`")
    parser.add_argument("--only", default=",".join(TYPES), help="types, separated by commas")
    parser.add_argument("--bases", default=",".join(base.name for base in BASES), help="bases, separated by commas")
    parser.add_argument("--usual", action="store_true", help="only the usual settings of each type, and trained biases")
    parser.add_argument("--results", type=Path, help="where to write every outcome, as JSON; of types and bases that are not run, what is there stays")
    parser.add_argument("--least", type=float, default=0.0, help="the share that must be equal")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="how many run at once")
    arguments = parser.parse_args()
    missing = uncovered(BASES)
    if missing:
        print("no variant has: " + "; ".join(missing))
        return 1
    kinds, started, results = arguments.only.split(","), time.monotonic(), []
    parts = [part for part in (kinds[0::3], kinds[1::3], kinds[2::3]) if part]
    with tempfile.TemporaryDirectory() as work, multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
        waiting = [
            pool.apply_async(sweep, (Path(work), arguments.xtask.resolve(), base, part, arguments.usual))
            for base in arguments.bases.split(",")
            for part in parts
        ]
        for result in (result for done in waiting for result in done.get()):
            results.append(result)
            if result.outcome != "equal" or result.detail:
                print(f"{result.outcome:<8}{result.base:<9}{result.type:<24}{result.variant:<28}{result.detail}", flush=True)
    counts = Counter(result.outcome for result in results)
    counted = counts["equal"] + counts["refused"] + counts["differs"]
    share = counts["equal"] / max(counted, 1)
    print(
        f"{counts['equal']} of {counted} equal ({share:.1%}), {counts['refused']} refused, {counts['differs']} differ; "
        f"{counts['skipped']} that PEFT {peft.__version__} itself cannot make, save or load; {time.monotonic() - started:.0f} s"
    )
    if arguments.results:
        found = {"peft": peft.__version__, "transformers": transformers.__version__, "bases": [base.name for base in BASES]}
        before = json.loads(arguments.results.read_text()) if arguments.results.exists() else {}
        found["results"] = before.get("results", {})
        for kind, by_base in by_type(results).items():
            found["results"].setdefault(kind, {}).update(by_base)
        arguments.results.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    return int(counts["differs"] > 0 or share < arguments.least or not counted)


if __name__ == "__main__":
    sys.exit(main())
