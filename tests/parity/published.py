"""Hold the `epiphyte` binary against PEFT on adapters that others published.

Each of `../shared/data/checkpoints/peft_adapters` is written in PEFT's format, every tensor of it, and loaded by PEFT
and by `epiphyte` over a base from a seed, which has the shapes that the adapter needs and small ones elsewhere:

- loralib's LoRA of RoBERTa-base on MNLI, with its head;
- T-Few's (IA)^3 of T0-3B;
- prompts of T5.1.1-base for SST-2, MRPC and RTE.

    python published.py --adapters DIR --epiphyte target/debug/epiphyte --work /some/empty/directory
"""

import argparse
import json
import sys
import warnings
from pathlib import Path

import numpy
import torch
import transformers
from peft import IA3Config, LoraConfig, PeftModel, PromptTuningConfig
from safetensors.torch import save_file
from transformers import RobertaConfig, RobertaForSequenceClassification, T5ForConditionalGeneration

from live import Epiphyte, Fixture, largest_difference
from tiny import BERT, T5, VOCABULARY, Base, t5


def roberta():
    """RoBERTa-base but for its vocabulary, its positions and its feed-forwards."""
    return RobertaForSequenceClassification(
        RobertaConfig(
            vocab_size=VOCABULARY,
            intermediate_size=16,
            max_position_embeddings=66,
            type_vocab_size=1,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            num_labels=3,
        )
    )


def t0():
    """T0-3B's attentions and feed-forwards over a narrow residual stream."""
    deep = {"num_layers": 24, "num_decoder_layers": 24, "num_heads": 32, "d_kv": 64, "d_ff": 5120, "d_model": 16}
    return t5(T5ForConditionalGeneration, eos_token_id=2, feed_forward_proj="gated-gelu", **deep)()


def t5_base():
    """One layer with the residual stream of T5.1.1-base."""
    return t5(T5ForConditionalGeneration, eos_token_id=2, feed_forward_proj="gated-gelu", num_layers=1, num_decoder_layers=1, d_model=768)()


def lora(directory):
    tensors = torch.load(directory / "lora_roberta_base_mnli/roberta_base_lora_mnli.bin", map_location="cpu", weights_only=True)
    ending = lambda name: name + ".weight" if name.endswith(("lora_A", "lora_B")) else name
    # The scale of the paper's runs on RoBERTa: alpha 16 over rank 8.
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"], modules_to_save=["classifier"], task_type="SEQ_CLS")
    return config, {f"base_model.model.{ending(name)}": value for name, value in tensors.items()}


def ia3(directory):
    tensors = torch.load(directory / "tfew_t0_3b_ia3/t03b_ia3_finish.pt", map_location="cpu", weights_only=True)
    config = IA3Config(target_modules=["k", "v", "wi_1"], feedforward_modules=[], task_type="SEQ_2_SEQ_LM")
    return config, {f"base_model.model.{name.replace('multi_lora_b', 'ia3_l')}": value for name, value in tensors.items()}


def prompt(name):
    def read(directory):
        array = numpy.load(directory / f"prompt_tuning_t5_1_1_lm100k_base/{name}.npy")
        config = PromptTuningConfig(
            num_virtual_tokens=100, token_dim=768, num_layers=1, num_attention_heads=4, num_transformer_submodules=1, task_type="SEQ_2_SEQ_LM"
        )
        return config, {"prompt_embeddings": torch.from_numpy(array)}

    return read


ADAPTERS = [
    (Base("roberta_mnli", roberta, BERT, "SEQ_CLS", []), lora, 52),
    (Base("t0_3b", t0, T5, "SEQ_2_SEQ_LM", [], targets=[]), ia3, 192),
    *((Base(f"t5_{name}", t5_base, T5, "SEQ_2_SEQ_LM", [], targets=[]), prompt(name), 1) for name in ("sst2", "mrpc", "rte")),
]


def main() -> int:
    """Load every adapter with both, and fail if numbers differ or a tensor is left over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=Path, required=True, help="the directory of the published files")
    parser.add_argument("--epiphyte", type=Path, required=True, help="the binary")
    parser.add_argument("--work", type=Path, required=True, help="an empty directory for models, data and adapters")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest difference of a logit or a loss")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    epiphyte = Epiphyte(arguments.epiphyte.resolve())
    failed = 0
    for base, read, count in ADAPTERS:
        directory = arguments.work / base.name
        directory.mkdir(parents=True)
        fixture = Fixture(base, directory)
        # One file of rows shows it; the deep model is slow.
        fixture.eval_sets = dict([*fixture.eval_sets.items()][:1])
        config, tensors = read(arguments.adapters)
        assert len(tensors) == count, (base.name, len(tensors))
        adapter = directory / "adapter"
        config.base_model_name_or_path = str(fixture.model_directory)
        config.inference_mode = True
        config.save_pretrained(adapter)
        save_file({name: value.contiguous() for name, value in tensors.items()}, adapter / "adapter_model.safetensors")
        model = fixture.load()
        plain = fixture.numbers(model, 0)
        loaded = PeftModel.from_pretrained(model, adapter).eval()
        theirs = fixture.numbers(loaded, 0)
        ours = epiphyte.numbers(fixture, ["--model", fixture.model_directory, "--adapter", adapter], fixture.task_flags())
        stored = json.loads(epiphyte.run("inspect", adapter, "--json"))
        difference = largest_difference(ours, theirs)
        changed = largest_difference(theirs, plain)
        names = {tensor["name"] for tensor in stored["tensors"]}
        left_over = names.symmetric_difference(tensors)
        good = not left_over and difference <= arguments.tolerance * max(1.0, float(theirs.abs().max())) and changed > 1e-3
        failed += not good
        print(f"{base.name:<16}{len(tensors):>5} tensors  difference {difference:.1e}, from the base {changed:.1e}  {'' if good else f'FAILED {left_over or str()}'}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
