"""LoRA over a quantized base against transformers + PEFT + bitsandbytes on the CPU: steps of 4 x 128 tokens.

    cargo build --release -p xtask
    python benches/against_pytorch/qlora.py --rust target/release/xtask --work DIRECTORY

The model of `decode.py` (the shape of a 0.5B Llama, random weights, bf16), LoRA of rank 8 on queries and values, AdamW,
no dropout. Both sides run in processes of their own, in turn, on all cores. Prints one JSON object a measurement: the
median time of a step, the loss at the end, the largest resident memory.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from decode import save_model

ROWS, LENGTH = 4, 128
FORMATS = ["none", "nf4", "int8"]


def torch_side(directory: Path, quantization: str, steps: int, warmup: int):
    """One measurement of Python, in this process."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    options = {"dtype": torch.bfloat16}
    if quantization != "none":
        options |= {"device_map": "cpu", "quantization_config": BitsAndBytesConfig(
            load_in_4bit=quantization == "nf4", load_in_8bit=quantization == "int8", bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16)}
    model = AutoModelForCausalLM.from_pretrained(directory, **options)
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(model, lora).train()
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=1e-4)
    vocabulary = model.config.vocab_size
    ids = torch.arange(ROWS * LENGTH).reshape(ROWS, LENGTH) * 7919 % (vocabulary - 1) + 1
    times = []
    for step in range(warmup + steps):
        start = time.perf_counter()
        optimizer.zero_grad()
        loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss
        loss.backward()
        optimizer.step()
        if step >= warmup:
            times.append(time.perf_counter() - start)
    return {"median_step_s": statistics.median(times), "loss": loss.item(),
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rust", type=Path, required=True, help="the binary xtask")
    parser.add_argument("--work", type=Path, required=True, help="directory for the model")
    parser.add_argument("--quantization", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--micro-batch-tokens", type=int, default=512)
    parser.add_argument("--torch", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    model = given.work / "llama-0.5b"
    if given.torch:
        print(json.dumps(torch_side(model, given.quantization[0], given.steps, given.warmup)))
        return
    if not (model / "model.safetensors").exists():
        save_model(model)
    steps = ["--steps", str(given.steps), "--warmup", str(given.warmup)]
    for quantization in given.quantization:
        own = [given.rust, "bench-step", "--work", "llama-0.5b-lora", "--dtype", "bf16", "--model", model, *steps,
               "--micro-batch-tokens", str(given.micro_batch_tokens)]
        own += [] if quantization == "none" else ["--quantization", quantization]
        other = [sys.executable, __file__, "--torch", "--rust", given.rust, "--work", given.work, *steps,
                 "--quantization", quantization]
        for side, command in [("epiphyte", own), ("bitsandbytes", other)]:
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0:
                sys.exit(done.stderr)
            result = json.loads(done.stdout.strip().splitlines()[-1])
            print(json.dumps({"side": side, "quantization": quantization, **result}), flush=True)


if __name__ == "__main__":
    main()
