"""Read adapters of every type that PEFT has, with every value of their configurations that changes the result.

For each type and variant, on tiny BERT, RoBERTa, Llama, GPT-2 and T5 bases, PEFT itself makes an adapter whose trained
values are random, saves it, and loads it again: what it then computes is what the file means. Each file is loaded here
and must give the same logits, or be refused with a reason; and what is written here again must give PEFT the same
logits. What PEFT cannot make, save or load again does not count.

    cargo build --workspace
    python sweep.py --xtask target/debug/xtask                        # every type
    python sweep.py --xtask target/debug/xtask --only LORA,IA3        # some types
    python sweep.py --xtask target/debug/xtask --table table.md       # and the table for the documentation
"""

import argparse
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import peft
import torch
import transformers
from peft import PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.lora.config import BdLoraConfig, KasaConfig, MontecloraConfig, VeloraConfig
from transformers import LlamaConfig, LlamaForCausalLM, T5ForConditionalGeneration
from transformers import GPT2LMHeadModel, RobertaConfig, RobertaForSequenceClassification

from peft_methods import cases
from tiny import BERT, GPT2, LLAMA, T5, VOCABULARY, Base, bert, decoder, gpt2, randomise, roberta, seeded, t5

TOLERANCE = 2e-4
LENGTHS = [11, 6, 9]

BASES = [
    Base("bert", bert(3), BERT, "SEQ_CLS", LENGTHS),
    Base("roberta", roberta(RobertaForSequenceClassification, RobertaConfig), BERT, "SEQ_CLS", LENGTHS),
    Base("llama", decoder(LlamaForCausalLM, LlamaConfig), LLAMA, "CAUSAL_LM", LENGTHS),
    Base("gpt2", gpt2(GPT2LMHeadModel), GPT2, "CAUSAL_LM", LENGTHS),
    Base("t5", t5(T5ForConditionalGeneration, eos_token_id=2), T5, "SEQ_2_SEQ_LM", LENGTHS, targets=[5, 7, 4]),
]

WORDS = {"bert": "word_embeddings", "roberta": "word_embeddings", "llama": "embed_tokens", "gpt2": "wte", "t5": "shared"}
VALUES = {"bert": "value", "roberta": "value", "llama": "v_proj", "gpt2": "c_attn", "t5": "v"}
OUTPUTS = {"bert": "output.dense", "roberta": "output.dense", "llama": "down_proj", "gpt2": "mlp.c_proj", "t5": "wo"}
NORMS = {"bert": "LayerNorm", "roberta": "LayerNorm", "llama": "input_layernorm", "gpt2": "ln_1", "t5": "layer_norm"}
BIASES = ("BOFT", "C3A", "DEFT", "DELORA", "FOURIERFT", "GLORA", "GRALORA", "HRA", "LORA", "MISS", "OFT", "PVERA")
BIASES += ("RANDLORA", "TINYLORA", "UNILORA", "VBLORA", "VERA", "WAVEFT")
PROMPTS = ("CARTRIDGE", "CPT", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "PROMPT_TUNING")
# Types that choose their own modules, or all.
WITHOUT_TARGETS = (*PROMPTS, "ADAPTION_PROMPT", "SHADOW")

# Settings that every variant of a type has, sized for bases of hidden size 32.
USUAL = {
    "ADALORA": {"init_r": 4, "target_r": 2, "total_step": 10, "lora_alpha": 6},
    "ADAMSS": {"r": 8, "num_subspaces": 2},
    "ADAPTION_PROMPT": {"adapter_len": 3, "adapter_layers": 1},
    "C3A": {"block_size": 16},
    "CARTRIDGE": {"num_virtual_tokens": 3},
    "CPT": {"cpt_token_ids": [7, 9, 11], "cpt_mask": [1, 1, 1], "cpt_tokens_type_mask": [1, 2, 3]},
    "DEFT": {"r": 4},
    "DELORA": {"r": 4},
    "FOURIERFT": {"n_frequency": 20},
    "FROD": {"progressbar": False},
    "GLORA": {"r": 4},
    "GRALORA": {"r": 4, "alpha": 6},
    "HIRA": {"r": 4},
    "HRA": {"r": 4},
    "LILY": {"r": 4},
    "LOHA": {"r": 4, "alpha": 6},
    "LOKR": {"r": 4, "alpha": 6},
    "LORA": {"r": 4, "lora_alpha": 6},
    "MISS": {"r": 4},
    "MULTITASK_PROMPT_TUNING": {"num_virtual_tokens": 3, "num_tasks": 2},
    "OFT": {"oft_block_size": 4},
    "OSF": {"effective_rank": 4},
    "PEANUT": {"r": 4},
    "POLY": {"r": 4, "n_tasks": 1},
    "PREFIX_TUNING": {"num_virtual_tokens": 3},
    "PROMPT_TUNING": {"num_virtual_tokens": 3},
    "PSOFT": {"r": 4, "psoft_alpha": 6},
    "PVERA": {"r": 4},
    "P_TUNING": {"num_virtual_tokens": 3, "encoder_hidden_size": 8},
    "RANDLORA": {"r": 4},
    "ROAD": {"group_size": 8},
    "SHADOW": {"r": 4},
    "SHIRA": {"r": 2, "random_seed": 5},
    "SUPERTUNING": {"sparsity": 0.9},
    "TRAINABLE_TOKENS": {"token_indices": [3, 11, 7]},
    "UNILORA": {"theta_d_length": 32},
    "VBLORA": {"num_vectors": 8, "vector_length": 4},
    "VERA": {"r": 4},
    "WAVEFT": {"n_frequency": 20},
}


def variants(kind: str, base: Base) -> dict[str, dict]:
    """The variants of a type by name: what each changes in the usual settings."""
    first, second = base.names.lora[0], OUTPUTS[base.name]
    found = {
        "ADALORA": {"all-linear": {"target_modules": "all-linear"}},
        "ADAMSS": {"r=4": {"r": 4}, "subspace_rank=2": {"subspace_rank": 2}},
        "BOFT": {"blocks=8": {"boft_block_size": 8}, "factor=2": {"boft_n_butterfly_factor": 2}, "block_num": {"boft_block_size": 0, "boft_block_num": 4}},
        "C3A": {"pattern": {"block_size_pattern": {first: 8}}},
        "CARTRIDGE": {"frozen=0": {"num_frozen_tokens": 0}, "frozen=2": {"num_frozen_tokens": 2}},
        "CPT": {"decay": {"opt_weighted_loss_type": "decay", "opt_loss_decay_factor": 0.9}, "epsilon": {"opt_projection_epsilon": 1.0}},
        "DEFT": {"qr": {"decomposition_method": "qr"}, "para": {"para": True}, "alpha": {"alpha": 6}},
        "DELORA": {"lambda": {"delora_lambda": 4}, "patterns": {"rank_pattern": {first: 2}, "lambda_pattern": {first: 3}}},
        "FOURIERFT": {"seed": {"random_loc_seed": 5}, "scaling": {"scaling": 40.0}, "pattern": {"n_frequency_pattern": {first: 7}}},
        "FROD": {"not saved": {"save_projection": False}, "sparse": {"sparse_rate": 0.1}},
        "GLORA": {
            "A_B=vector": {"config_A_B": "vector"}, "A_B=constant": {"config_A_B": "constant"}, "C=vector": {"config_C": "vector"},
            "C=none": {"config_C": "none"}, "D_E=vector": {"config_D_E": "vector"}, "D_E=none": {"config_D_E": "none"},
        },
        "GRALORA": {"k=4": {"gralora_k": 4}, "hybrid": {"hybrid_r": 2}},
        "HIRA": {"pattern": {"rank_pattern": {first: 2}}},
        "HRA": {"GS": {"apply_GS": True}},
        "IA3": {"feed-forward": {"target_modules": [*base.names.ia3, *base.names.ia3_feedforward], "feedforward_modules": base.names.ia3_feedforward}},
        "LILY": {"stride=2": {"stride_A": 2}, "B=1": {"num_B": 1}, "scaling": {"scaling": 0.5}},
        "LOHA": {"patterns": {"rank_pattern": {first: 2}, "alpha_pattern": {first: 3}}},
        "LOKR": {
            "both": {"decompose_both": True, "r": 2}, "factor=4": {"decompose_factor": 4}, "r=1": {"r": 1},
            "patterns": {"rank_pattern": {first: 2}, "alpha_pattern": {first: 3}}, "lycoris": {"init_weights": "lycoris"},
        },
        "MISS": {"bat": {"init_weights": "bat"}, "mini": {"init_weights": "mini", "mini_r": 2}},
        "OFT": {
            "r": {"r": 4, "oft_block_size": 0}, "share": {"block_share": True}, "coft": {"coft": True, "eps": 1e-3},
            "exact": {"use_cayley_neumann": False}, "terms": {"num_cayley_neumann_terms": 3},
        },
        "OSF": {"rank_pattern": {"rank_pattern": {first: 2}}},
        "PEANUT": {"depth=2": {"depth": 2}, "tanh": {"act_fn": "tanh"}, "scaling": {"scaling": 0.5}},
        "POLY": {"splits": {"n_splits": 2}, "skills=2": {"n_skills": 2}},
        "PREFIX_TUNING": {"mlp": {"prefix_projection": True, "encoder_hidden_size": 8}},
        "PSOFT": {
            "no magnitudes": {"psoft_mag_a": False, "psoft_mag_b": False}, "not orthogonal": {"psoft_orth": False},
            "neumann": {"use_cayley_neumann": True}, "pissa": {"ab_svd_init": "pissa_init"}, "lowrank": {"psoft_svd": "lowrank"},
        },
        "PVERA": {"not saved": {"save_projection": False}, "d": {"d_initial": 0.5}},
        "P_TUNING": {"lstm": {"encoder_reparameterization_type": "LSTM"}},
        "RANDLORA": {"sparse": {"sparse": True}, "very sparse": {"very_sparse": True}, "alpha": {"randlora_alpha": 20}, "not saved": {"save_projection": False}},
        "ROAD": {"road_2": {"variant": "road_2"}, "road_4": {"variant": "road_4"}},
        "SHADOW": {"alpha": {"shadow_alpha": 0.5}, "layers": {"shadow_num_hidden_layers": 1}, "own words": {"share_embeddings": False}},
        "SUPERTUNING": {"bottom": {"select_top": False}, "lora": {"r": 2, "lora_alpha": 4}, "not saved": {"save_precomputed_indices": False}},
        "TINYLORA": {"u=8": {"u": 8}, "tied": {"weight_tying": 1.0}, "not saved": {"save_projection": False}},
        "UNILORA": {"indices": {"save_indices": True}, "seed": {"proj_seed": 5}},
        "VBLORA": {"topk=3": {"topk": 3}, "only topk": {"save_only_topk_weights": True}},
        "VERA": {"not saved": {"save_projection": False}, "d": {"d_initial": 0.5}, "two shapes": {"target_modules": [first, second]}},
        "WAVEFT": {
            "no idwt": {"use_idwt": False}, "db2": {"wavelet_family": "db2"}, "seed": {"random_loc_seed": 5},
            "proportional": {"proportional_parameters": True}, "pattern": {"n_frequency_pattern": {first: 7}},
        },
    }.get(kind, {})
    if kind == "LORA":
        found = lora(base, first, second)
    if kind in BIASES:
        word = {"OFT": "oft_only", "BOFT": "boft_only"}.get(kind, f"{kind.lower()}_only")
        found |= {"bias=all": {"bias": "all"}, f"bias={word}": {"bias": word}}
    if kind not in WITHOUT_TARGETS:
        found |= {"module": {"modules_to_save": [NORMS[base.name]]}}
    return {"": {}} | found


def lora(base: Base, first: str, second: str) -> dict[str, dict]:
    """The variants of LoRA."""
    words = WORDS[base.name]
    starts = ["gaussian", False, "orthogonal", "pissa", "pissa_niter_4", "olora", "mica", "eva", "loftq", "lora_ga"]
    found = {f"init={start}": {"init_lora_weights": start} for start in starts}
    found["init=loftq"] |= {"loftq_config": {"loftq_bits": 4, "loftq_iter": 1}}
    found |= {
        "rslora": {"use_rslora": True},
        "dora": {"use_dora": True},
        "lora_bias": {"lora_bias": True},
        "patterns": {"target_modules": [first, second], "rank_pattern": {first: 2, second: 3}, "alpha_pattern": {second: 5}},
        "all-linear": {"target_modules": "all-linear"},
        "layers": {"layers_to_transform": [1]},
        "excluded": {"target_modules": "all-linear", "exclude_modules": [first]},
        "regex": {"target_modules": rf".*\.{first}"},
        "words": {"target_modules": [words, first]},
        "tokens": {"trainable_token_indices": [3, 11, 7]},
        "kasa": {"kasa_config": KasaConfig()},
        "velora": {"velora_config": VeloraConfig(num_groups=4)},
        "monteclora": {"monteclora_config": MontecloraConfig(num_samples=2, buffer_size=4)},
        "bdlora a": {"use_bdlora": BdLoraConfig(target_modules_bd_a=base.names.lora, nblocks=2)},
        "bdlora b": {"use_bdlora": BdLoraConfig(target_modules_bd_b=base.names.lora, nblocks=2)},
        "qalora": {"use_qalora": True, "qalora_group_size": 16},
        "replicated": {"layer_replication": [[0, 2], [1, 2]]},
        "dora words": {"use_dora": True, "target_modules": [words, first]},
    }
    if base.task == "CAUSAL_LM":
        # For other tasks PEFT never lets it act.
        found["alora"] = {"alora_invocation_tokens": [7]}
    if base.task != "SEQ_CLS":
        found["head"] = {"target_modules": ["lm_head", first]}
        found["tied"] = {"target_modules": [words], "ensure_weight_tying": True}
    return found


@dataclass
class Result:
    """What became of a variant on a base."""

    kind: str
    variant: str
    base: str
    # equal, refused, differs, or skipped where PEFT itself cannot.
    outcome: str
    detail: str = ""


def rows_of(base: Base) -> dict:
    """Rows of random tokens, of which the first two texts have token 7; segments and targets where there are some."""
    generator = seeded("sweep", base.name)
    ids = [torch.randint(12, VOCABULARY, (n,), generator=generator).tolist() for n in LENGTHS]
    ids[0][4] = ids[1][2] = 7
    rows = {"input_ids": ids}
    if base.task == "SEQ_CLS":
        rows["classes"] = 3
    if base.targets:
        rows["labels"] = [torch.randint(12, VOCABULARY, (n,), generator=generator).tolist() for n in base.targets]
    return rows


def logits(model, rows: dict) -> torch.Tensor:
    """The logits of each row, run alone; of a language model, those of its own tokens."""
    found = []
    for at, ids in enumerate(rows["input_ids"]):
        inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
        own = len(ids)
        if "labels" in rows:
            inputs["labels"] = torch.tensor([rows["labels"][at]])
            own = len(rows["labels"][at])
        if isinstance(model, PeftModel) and model.peft_type in ("POLY", "MULTITASK_PROMPT_TUNING"):
            inputs["task_ids"] = torch.tensor([0])
        with torch.no_grad():
            output = model(**inputs).logits[0]
        found.append(output.flatten() if "classes" in rows else output[-own:].flatten())
    return torch.cat(found)


def load(base: Base, directory: Path):
    """The base model."""
    return type(base.make()).from_pretrained(directory, attn_implementation=base.attention).eval()


def make(kind: str, settings: dict, base: Base, base_directory: Path, directory: Path, rows: dict) -> torch.Tensor:
    """Make, save and load again an adapter; returns its logits."""
    config_class = {str(key.value): value for key, value in PEFT_TYPE_TO_CONFIG_MAPPING.items()}[kind]
    common = {"task_type": base.task}
    if kind not in WITHOUT_TARGETS:
        targets = {"LN_TUNING": [NORMS[base.name]], "TRAINABLE_TOKENS": [WORDS[base.name]], "IA3": base.names.ia3, "BEFT": [VALUES[base.name]]}
        common["target_modules"] = targets.get(kind, base.names.lora)
    if kind == "IA3":
        common["feedforward_modules"] = []
    if kind == "P_TUNING" or kind == "PROMPT_TUNING" or kind == "MULTITASK_PROMPT_TUNING":
        common |= {"num_transformer_submodules": 1} if base.task == "SEQ_2_SEQ_LM" else {}
    config = config_class(**(common | USUAL.get(kind, {}) | settings))
    torch.manual_seed(0)
    model = get_peft_model(load(base, base_directory), config)
    trainable = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    randomise(trainable, seeded("sweep", kind, base.name), method_of(kind))
    model.eval()
    directory.mkdir(parents=True)
    model.save_pretrained(directory)
    before = logits(model, rows)
    after = logits(loaded(base, base_directory, directory), rows)
    if not torch.isfinite(before).all():
        raise ValueError("its own logits are not finite")
    if not (before - after).abs().max() <= TOLERANCE:
        raise ValueError(f"what it loads differs from what it saved by {(before - after).abs().max():.1e}")
    return after


def loaded(base: Base, base_directory: Path, directory: Path):
    """The adapter as PEFT loads it."""
    torch.manual_seed(1)
    return PeftModel.from_pretrained(load(base, base_directory), directory).eval()


def method_of(kind: str) -> str | None:
    """The golden case of a type, whose values are like trained ones."""
    names = {"LORA": "dora", "IA3": "ia3", "PREFIX_TUNING": "prefix_tuning", "PROMPT_TUNING": "prompt_tuning"}
    name = names.get(kind, kind.lower())
    return name if name in cases() else None


def sweep(base: Base, work: Path, xtask: Path, kinds: list[str]) -> list[Result]:
    """All variants of these types on one base."""
    base_directory, rows = work / base.name / "base", rows_of(base)
    model = base.make()
    randomise(model.named_parameters(), seeded("sweep", base.name))
    model.save_pretrained(base_directory)
    (work / base.name / "rows.json").write_text(json.dumps(rows))
    results, made = [], {}
    for kind in kinds:
        for variant, settings in variants(kind, base).items():
            directory = work / base.name / "adapters" / f"{len(made) + len(results)}-{kind}"
            try:
                with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                    expected = make(kind, settings, base, base_directory, directory, rows)
                made[str(directory)] = (kind, variant, expected)
            except Exception as error:  # noqa: BLE001: whatever stops PEFT, the variant is none of its own
                results.append(Result(kind, variant, base.name, "skipped", f"{type(error).__name__}: {str(error)[:150]}"))
                shutil.rmtree(directory, ignore_errors=True)
    if not made:
        return results
    again = work / base.name / "again"
    command = [str(xtask), "adapter-logits", "--base", str(base_directory), "--rows", str(work / base.name / "rows.json")]
    done = subprocess.run([*command, "--save", str(again), *made], capture_output=True, text=True)
    lines = {found["adapter"]: found for found in map(json.loads, done.stdout.splitlines())}
    for directory, (kind, variant, expected) in made.items():
        found = lines.get(directory, {"problem": f"no answer: {done.stderr[-300:]}", "crashed": True})
        results.append(judge(found, kind, variant, base, base_directory, again / Path(directory).name, expected, rows))
    return results


def judge(found: dict, kind, variant, base, base_directory, again: Path, expected, rows) -> Result:
    """Compare what was found for an adapter with PEFT's logits, in both directions."""
    if "crashed" in found:
        return Result(kind, variant, base.name, "differs", found["problem"])
    if "problem" in found:
        return Result(kind, variant, base.name, "refused", found["problem"])
    ours = torch.tensor(found["logits"])
    if ours.shape != expected.shape or not (ours - expected).abs().max() <= TOLERANCE:
        far = "other shapes" if ours.shape != expected.shape else f"{(ours - expected).abs().max():.1e} apart"
        return Result(kind, variant, base.name, "differs", far)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            back = logits(loaded(base, base_directory, again), rows)
    except Exception as error:  # noqa: BLE001
        return Result(kind, variant, base.name, "differs", f"PEFT cannot load it again: {type(error).__name__}: {str(error)[:150]}")
    if not (back - expected).abs().max() <= TOLERANCE:
        return Result(kind, variant, base.name, "differs", f"{(back - expected).abs().max():.1e} apart when PEFT loads it again")
    return Result(kind, variant, base.name, "equal")


def table(results: list[Result]) -> str:
    """Markdown: for each type and family, how many variants are equal of those that PEFT can save and load."""
    kinds = sorted({result.kind for result in results})
    lines = ["| PEFT type | " + " | ".join(base.name for base in BASES) + " |", "| --- |" + " --- |" * len(BASES)]
    for kind in kinds:
        cells = []
        for base in BASES:
            own = Counter(it.outcome for it in results if (it.kind, it.base) == (kind, base.name))
            of = own["equal"] + own["refused"] + own["differs"]
            cells.append(f"{own['equal']}/{of}" if of else "–")
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the sweep, print every outcome and fail if any differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--xtask", type=Path, required=True, help="the program `xtask`")
    parser.add_argument("--only", default="", help="types, separated by commas")
    parser.add_argument("--bases", default="", help="bases, separated by commas")
    parser.add_argument("--table", type=Path, help="where to write the table of types and families")
    parser.add_argument("--least", type=float, default=0.0, help="the share that must be equal")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    every = sorted(str(kind.value) for kind in PEFT_TYPE_TO_CONFIG_MAPPING if str(kind.value) != "XLORA")
    kinds = arguments.only.split(",") if arguments.only else every
    results = []
    with tempfile.TemporaryDirectory() as work:
        for base in BASES:
            if arguments.bases and base.name not in arguments.bases.split(","):
                continue
            for result in sweep(base, Path(work), arguments.xtask.resolve(), kinds):
                results.append(result)
                if result.outcome != "equal":
                    print(f"{result.outcome:<8}{result.base:<9}{result.kind:<24}{result.variant:<22}{result.detail}", flush=True)
    counts = Counter(result.outcome for result in results)
    counted = counts["equal"] + counts["refused"] + counts["differs"]
    share = counts["equal"] / max(counted, 1)
    print(table(results))
    print(f"{counts['equal']} of {counted} equal ({share:.0%}), {counts['refused']} refused, {counts['differs']} differ; PEFT {peft.__version__} itself cannot save and load {counts['skipped']}")
    if arguments.table:
        arguments.table.write_text(table(results))
    return int(counts["differs"] > 0 or share < arguments.least or not counted)


if __name__ == "__main__":
    sys.exit(main())
