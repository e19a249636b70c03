"""Whether llama.cpp itself reads what `epiphyte export` writes: the same 64 tokens, for a model and with an adapter.

    pip install llama-cpp-python
    python tests/parity/llama_cpp_live.py --epiphyte target/release/epiphyte --model STORIES260K --text TEXT --work DIRECTORY

STORIES260K is a small Llama in Hugging Face's layout, TEXT what the adapter is trained on. Not part of `.ci/run`, since
llama.cpp compiles for ten minutes.
"""

import argparse
import json
import subprocess
from pathlib import Path

PROMPT, TOKENS = "Once upon a time", 64


def of_llama_cpp(**files):
    from llama_cpp import Llama

    model = Llama(n_ctx=256, verbose=False, **files)
    ids = model.tokenize(PROMPT.encode())
    model.eval(ids)
    written = []
    for _ in range(TOKENS):
        written.append(model.sample(temp=0.0))
        model.eval(written[-1:])
    return (PROMPT.encode() + model.detokenize(written)).decode()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ["epiphyte", "model", "text", "work"]:
        parser.add_argument(f"--{name}", type=Path, required=True)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    model, adapter = given.work / "model.gguf", given.work / "adapter.gguf"
    trained = given.work / "adapter"

    def run(*arguments):
        command = [given.epiphyte, *arguments, "--model", given.model, "--quiet"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    run("train", "--task", "causal-lm", "--train-data", given.text, "--method", "lora", "--target-modules", "all-linear",
        "--learning-rate", "1e-2", "--max-steps", "20", "--max-length", "64", "--output", trained, "--overwrite")
    run("export", "--to", "gguf", "--dtype", "f32", "--output", model, "--overwrite")
    run("export", "--to", "gguf", "--adapter", trained, "--output", adapter, "--overwrite")
    texts = []
    for name, own, other in [
        ("the model", [], {}),
        ("with the adapter", ["--adapter", trained], {"lora_path": str(adapter)}),
    ]:
        ours = run("generate", "--prompt", PROMPT, "--max-new-tokens", str(TOKENS), "--temperature", "0", "--json", *own)
        ours = json.loads(ours)["text"]
        theirs = of_llama_cpp(model_path=str(model), **other)
        assert ours == theirs, f"{name}: {ours!r} and {theirs!r}"
        texts.append(ours)
        print(f"{name}: {TOKENS} tokens are the same")
    assert texts[0] != texts[1], "the adapter changes nothing"


if __name__ == "__main__":
    main()
