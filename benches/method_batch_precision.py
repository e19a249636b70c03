"""Memory and speed of three methods in three batch sizes over a base of three precisions, as one Markdown table.

    cargo build --release -p epiphyte --features cli
    python benches/method_batch_precision.py --epiphyte target/release/epiphyte --tokenizer GPT2 --text TEXT --work DIRECTORY

TEXT is any text of some 100 KB, GPT2 the tokenizer.json of GPT-2. The base is that of `against_pytorch/decode.py`, the
shape of a 0.5B Llama with random weights. The comparison is `method_batch_precision.toml`; its report is in DIRECTORY.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "against_pytorch"))
from decode import save_model  # noqa: E402

LENGTH = 128


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ["epiphyte", "tokenizer", "text", "work"]:
        parser.add_argument(f"--{name}", type=Path, required=True)
    arguments = parser.parse_args()
    base, data = arguments.work / "base", arguments.work / "data"
    if not base.exists():
        save_model(base, arguments.tokenizer)
    data.mkdir(exist_ok=True)
    text = arguments.text.read_text()
    rows = [json.dumps({"text": text[at:at + 1000]}) for at in range(0, len(text), 1000)]
    (data / "text.jsonl").write_text("\n".join(rows))
    report = arguments.work / "report"
    subprocess.run([arguments.epiphyte, "compare", HERE / "method_batch_precision.toml", "--model", base,
                    "--data", data, "--output", report], check=True)
    print("| method | batch | precision | step, s | examples/s | peak memory of the step |")
    print("| --- | ---: | --- | ---: | ---: | ---: |")
    for run in json.loads((report / "results.json").read_text())["runs"]:
        batch = int(run["task"].split()[1])
        speed = run["tokens_per_second"] / LENGTH
        memory = run["peak_memory_bytes"] / 2**20
        print(f"| {run['method']} | {batch} | {run['model']} | {batch / speed:.2f} | {speed:.2f} | {memory:,.0f} MiB |")


if __name__ == "__main__":
    main()
