"""Text generation against llama.cpp, over the same random weights: in bf16, in 8 and in 4 bits.

    cargo build --release -p epiphyte --features cli && cargo build --release -p xtask
    pip install llama-cpp-python torch transformers
    python benches/against_llama_cpp.py --epiphyte target/release/epiphyte --rust target/release/xtask \
        --tokenizer TOKENIZER --work DIRECTORY

The model is that of `against_pytorch/decode.py`; `epiphyte export` writes it for llama.cpp, whose own program
quantizes it. TOKENIZER is the tokenizer.json of GPT-2, which the file needs and nothing here reads. The sides run in
processes of their own, in turn, on all cores. Prints one JSON object a measurement: the prompt's tokens a second, and
new tokens a second after the first.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent

# llama.cpp's name of a format, its number in `llama_ftype`, and ours.
FORMATS = [("bf16", None, None), ("Q8_0", 7, "int8"), ("Q4_0", 2, "int4")]


def llama_side(path: Path, prompt: int, new: int):
    """One measurement of llama.cpp, in this process."""
    from llama_cpp import Llama

    threads = os.cpu_count()
    model = Llama(str(path), n_ctx=prompt + new + 8, n_batch=prompt, n_ubatch=prompt, n_threads=threads,
                  n_threads_batch=threads, verbose=False)
    ids = [10 + at * 7 % 900 for at in range(prompt)]
    model.eval(ids[:8])
    model.reset()
    start = time.perf_counter()
    model.eval(ids)
    token = model.sample(temp=0.0)
    first = time.perf_counter()
    for _ in range(new - 1):
        model.eval([token])
        token = model.sample(temp=0.0)
    end = time.perf_counter()
    return {"prompt_tokens_per_s": prompt / (first - start), "new_tokens_per_s": (new - 1) / (end - first)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ["epiphyte", "rust", "tokenizer", "work"]:
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--llama-python", default=sys.executable, help="the Python that has llama-cpp-python")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--llama", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.llama:
        print(json.dumps(llama_side(given.llama, given.prompt, given.new)))
        return
    model = given.work / "llama-0.5b"
    if not (model / "model.safetensors").exists():
        sys.path.insert(0, str(HERE / "against_pytorch"))
        from decode import save_model

        save_model(model, given.tokenizer)
    files = {name: given.work / f"{name}.gguf" for name, *_ in FORMATS}
    if not files["bf16"].exists():
        subprocess.run([given.epiphyte, "export", "--model", model, "--to", "gguf", "--output", files["bf16"]],
                       check=True)
    quantize = ("import sys, llama_cpp as it; how = it.llama_model_quantize_default_params(); how.ftype = int(sys.argv[3]);"
                "sys.exit(it.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), how))")
    for name, number, _ in FORMATS[1:]:
        if not files[name].exists():
            command = [given.llama_python, "-c", quantize, files["bf16"], files[name], str(number)]
            subprocess.run(command, check=True, capture_output=True)
    sizes = ["--prompt", str(given.prompt), "--new", str(given.new)]
    for _ in range(given.rounds):
        for name, _, quantization in FORMATS:
            own = [given.rust, "bench-decode", "--model", model, "--dtype", "bf16", *sizes]
            own += ["--quantization", quantization] if quantization else []
            other = [given.llama_python, __file__, "--llama", files[name], *sizes]
            for side, command in [("epiphyte", own), ("llama.cpp", other)]:
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                result = json.loads(done.stdout.strip().splitlines()[-1])
                print(json.dumps({"side": side, "format": name, **result}), flush=True)


if __name__ == "__main__":
    main()
