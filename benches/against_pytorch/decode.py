"""Text generation against transformers: a prompt is read, then tokens are written greedily.

    cargo build --release -p xtask
    python benches/against_pytorch/decode.py --rust target/release/xtask --work DIRECTORY

The model has the shape of a 0.5B Llama (Qwen2's), random weights in bf16, and is saved below the
work directory once. Both sides run in processes of their own, one after the other, on all cores.
Prints one JSON object a measurement: the prompt's tokens a second, new tokens a second after the
first, and the largest resident memory.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

SHAPE = {"vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
         "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True,
         "max_position_embeddings": 4096}


def save_model(directory: Path, tokenizer: Path | None = None):
    """The model, and with it the tokenizer.json of GPT-2 where a tokenizer is needed."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    model = Qwen2ForCausalLM._from_config(Qwen2Config(**SHAPE), dtype=torch.bfloat16)
    model.save_pretrained(directory)
    if tokenizer:
        shutil.copy(tokenizer, directory / "tokenizer.json")
        (directory / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')


def torch_side(directory: Path, prompt: int, new: int, batch: int):
    """One measurement of transformers, in this process."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).eval()
    ids = torch.tensor([[10 + at * 7 % 900 for at in range(prompt)]]).repeat(batch, 1)

    def generate(tokens):
        start = time.perf_counter()
        model.generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False,
                       attention_mask=torch.ones_like(ids), pad_token_id=0)
        return time.perf_counter() - start

    with torch.inference_mode():
        model(ids[:, :8])
        first, whole = generate(1), generate(new)
    return {
        "prompt_tokens_per_s": batch * prompt / first,
        "new_tokens_per_s": batch * (new - 1) / (whole - first),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rust", type=Path, required=True, help="the binary xtask")
    parser.add_argument("--work", type=Path, required=True, help="directory for the model")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--torch", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    model = given.work / "llama-0.5b"
    if given.torch:
        print(json.dumps(torch_side(model, given.prompt, given.new, given.batch[0])))
        return
    if not (model / "model.safetensors").exists():
        save_model(model)
    for batch in given.batch:
        sizes = ["--prompt", str(given.prompt), "--new", str(given.new), "--batch", str(batch)]
        own = [given.rust, "bench-decode", "--model", model, "--dtype", "bf16", *sizes]
        other = [sys.executable, __file__, "--torch", "--rust", given.rust, "--work", given.work, *sizes]
        for side, command in [("epiphyte", own), ("transformers", other)]:
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            result = json.loads(done.stdout.strip().splitlines()[-1])
            print(json.dumps({"side": side, "batch": batch, **result}), flush=True)


if __name__ == "__main__":
    main()
