#!/usr/bin/env python3
"""Compares what `epiphyte plan` says with what the runs then take, and writes the table of docs/plan.md.

Ten methods, spread over the registry, on each of three models. On a machine that does nothing else:

    cargo build --release -p epiphyte --features cli
    python benches/plan_against_runs.py --epiphyte target/release/epiphyte --minilm all-MiniLM-L6-v2 \
        --data ../shared/data --out docs/plan.md

Exit code 1 if memory is off by more than a tenth, or time by more than a fifth.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

MEMORY, TIME = 0.10, 0.20
METHODS = 10


def runs(arguments):
    """Each model with the flags of a run."""
    data, assets = arguments.data, pathlib.Path(__file__).parent.parent / "crates/epiphyte/assets/quickstart"
    return {
        "MiniLM, MRPC": f"--model {arguments.minilm} --task glue/mrpc --train-data {data}/glue_mrpc "
        "--max-length 64 --batch-size 16 --max-steps 40",
        "stories260K, Shakespeare": f"--model {data}/checkpoints/stories260K/hf --task causal-lm "
        f"--train-data {data}/tinyshakespeare/input.txt --max-length 128 "
        "--batch-size 16 --max-steps 60",
        "quickstart's base, log": f"--model {assets}/base --task causal-lm --train-data {assets}/train.jsonl "
        f"--eval-data {assets}/eval.jsonl --text-columns text --max-length 128 --batch-size 16 --max-steps 40",
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epiphyte", required=True, type=pathlib.Path)
    parser.add_argument("--minilm", required=True, type=pathlib.Path)
    parser.add_argument("--data", required=True, type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--only", default="", help="models whose name has this in it")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()

    def epiphyte(command):
        words = [str(arguments.epiphyte.resolve()), *command.split(), "--quiet", "--threads", str(arguments.threads)]
        return subprocess.run(words, capture_output=True, text=True)

    listed = epiphyte("methods --json").stdout
    names = [method["name"] for method in json.loads(listed)["methods"]]
    spread = [name for first in range(7) for name in names[first::7]]
    lines, wrong = [], 0
    for model, run in runs(arguments).items():
        if arguments.only not in model:
            continue
        found = 0
        for name in spread:
            if found == METHODS:
                break
            planned = epiphyte(f"plan {run} --method {name} --timed-steps 10 --json")
            if planned.returncode != 0:
                continue  # It does not apply there, or its defaults do not fit.
            found += 1
            plan = json.loads(planned.stdout)
            with tempfile.TemporaryDirectory() as directory:
                trained = epiphyte(f"train {run} --method {name} --output {directory}/run")
                if trained.returncode != 0:
                    sys.exit(f"{model}, {name}: {trained.stderr}")
                cost = json.loads(pathlib.Path(directory, "run/account.json").read_text())["cost"]
            memory = plan["memory"]["peak"], cost["memory"]["peak"]
            seconds = plan["seconds"], cost["seconds"]
            ratios = memory[0] / memory[1], seconds[0] / seconds[1]
            is_wrong = abs(ratios[0] - 1) > MEMORY or abs(ratios[1] - 1) > TIME
            wrong += is_wrong
            lines.append(
                f"| {model} | {name} | {memory[0] / 1e6:.1f} MB | {memory[1] / 1e6:.1f} MB | {ratios[0]:.2f} "
                f"| {seconds[0]:.2f} s | {seconds[1]:.2f} s | {ratios[1]:.2f} |"
            )
            print(lines[-1], "<-- off" if is_wrong else "", flush=True)
        if found < METHODS:
            sys.exit(f"{model}: only {found} methods could be planned; the last said: {planned.stderr}")
    header = (
        "| model | method | memory, planned | measured | ratio | time, planned | measured | ratio |\n"
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |\n"
    )
    summary = f"{len(lines)} plans, {wrong} of them off by more than a tenth of memory or a fifth of time.\n"
    print(summary)
    if arguments.out:
        text = arguments.out.read_text()
        start = text.index("<!-- table -->") + len("<!-- table -->")
        arguments.out.write_text(text[:start] + "\n\n" + summary + "\n" + header + "\n".join(lines) + "\n")
    sys.exit(1 if wrong else 0)


main()
