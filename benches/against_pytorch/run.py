"""Training speed and memory of epiphyte against PyTorch + transformers + PEFT, measured alternately in one run.

    python run.py --rust target/release/xtask --out results.json

Each measurement is a process of its own that prints one JSON line: `torch_side.py` here, and for our side the binary
given with `--rust`, called with the same arguments (`--work NAME --dtype f32 --steps N --warmup N --threads N
[--data FILE]`) and printing the same keys: `median_step_s`, `tokens_per_s`, `peak_rss_bytes`, `first_step_s`, `loss`.
The environment variable BENCH_START holds the Unix time at which the process was started. `works.py` lists the works.

Peak memory is what the kernel reports for the process. If this Python lacks torch, transformers or peft, an
environment with them is made under `--environment`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import venv
from pathlib import Path

from works import WORKS

HERE = Path(__file__).parent
PACKAGES = ["torch==2.15.0", "transformers==5.23.0", "peft==0.21.2"]


def find_python(environment: Path) -> Path:
    """A Python that has the packages: this one, or one made for it."""
    probe = [sys.executable, "-c", "import torch, transformers, peft"]
    if subprocess.run(probe, stderr=subprocess.DEVNULL).returncode == 0:
        return Path(sys.executable)
    python = environment / "bin" / "python"
    if not python.is_file():
        venv.create(environment, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    return python


def measure(command: list) -> dict:
    """Run one child to its end; its JSON line, with the peak memory that the kernel saw."""
    environment = os.environ | {"BENCH_START": repr(time.time())}
    child = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True, env=environment)
    output = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        raise SystemExit(f"failed ({child.returncode}): {' '.join(map(str, command))}")
    return json.loads(output.splitlines()[-1]) | {"peak_rss_bytes": usage.ru_maxrss * 1024}


def summarise(runs: list[dict]) -> dict:
    """The median of each number over the rounds."""
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def table(results: dict[str, dict]) -> str:
    """Markdown: one line for each work and precision."""
    lines = [
        "| work | dtype | step, PyTorch | step, epiphyte | throughput | goal | memory, PyTorch | memory, epiphyte | ratio | goal | first step |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for key, sides in results.items():
        name, dtype = key.split("/")
        work, torch_side = WORKS[name], sides["torch"]
        cells = [name, dtype, f"{torch_side['median_step_s']:.3f} s"]
        if "rust" in sides:
            ours = sides["rust"]
            cells += [
                f"{ours['median_step_s']:.3f} s",
                f"{ours['tokens_per_s'] / torch_side['tokens_per_s']:.2f}x",
                f"{work.goal(dtype):.1f}x",
                f"{torch_side['peak_rss_bytes'] / 2**30:.2f} GiB",
                f"{ours['peak_rss_bytes'] / 2**30:.2f} GiB",
                f"{ours['peak_rss_bytes'] / torch_side['peak_rss_bytes']:.2f}x",
                f"{work.memory_goal:.2f}x",
                f"{torch_side['first_step_s']:.1f} s / {ours['first_step_s']:.1f} s",
            ]
        else:
            memory, first = torch_side["peak_rss_bytes"] / 2**30, torch_side["first_step_s"]
            cells += ["-", "-", f"{work.goal(dtype):.1f}x", f"{memory:.2f} GiB", "-", "-", f"{work.memory_goal:.2f}x"]
            cells += [f"{first:.1f} s / -"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure every chosen work on both sides in turn, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rust", type=Path, help="the `xtask` binary; without it only PyTorch is measured")
    parser.add_argument("--works", nargs="+", default=list(WORKS), choices=list(WORKS))
    parser.add_argument("--dtypes", nargs="+", default=["f32", "bf16"], choices=["f32", "bf16"])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="how often the two sides take turns")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--mrpc", type=Path, help="MRPC's train.tsv, for the works on real text (else left out)")
    parser.add_argument("--tokenizer", type=Path, help="directory of the tokenizer for --mrpc")
    parser.add_argument("--environment", type=Path, default=HERE / ".venv")
    parser.add_argument("--out", type=Path, required=True, help="JSON file; the Markdown table is written beside it")
    arguments = parser.parse_args()

    python = find_python(arguments.environment)
    tokens = arguments.out.with_suffix(".tokens.jsonl")
    if arguments.mrpc:
        script = [python, HERE / "mrpc_tokens.py", arguments.tokenizer, arguments.mrpc, tokens]
        subprocess.run(script, check=True)
    sides = {"torch": [python, HERE / "torch_side.py"]}
    if arguments.rust:
        sides["rust"] = [arguments.rust.resolve(), "bench-step"]

    results = {}
    for name in arguments.works:
        work = WORKS[name]
        real_text = work.length == 0
        if real_text and not arguments.mrpc:
            print(f"{name}: left out, it needs --mrpc", file=sys.stderr)
            continue
        # On real text the steps are one epoch, so that both sides see the same lengths.
        steps = -(-len(tokens.read_text().splitlines()) // work.rows) if real_text else arguments.steps
        for dtype in (dtype for dtype in work.dtypes if dtype in arguments.dtypes):
            options = ["--work", name, "--dtype", dtype, "--steps", steps, "--warmup", arguments.warmup]
            options += ["--threads", arguments.threads, *(["--data", tokens] if real_text else [])]
            runs = {side: [] for side in sides}
            for _ in range(arguments.rounds):
                for side, command in sides.items():
                    runs[side].append(measure([*command, *options]))
                    print(f"{name} {dtype} {side}: {runs[side][-1]}", file=sys.stderr, flush=True)
            results[f"{name}/{dtype}"] = {side: summarise(rounds) for side, rounds in runs.items()}
            arguments.out.write_text(json.dumps(results, indent=2) + "\n")
            arguments.out.with_suffix(".md").write_text(table(results))
    print(table(results), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
