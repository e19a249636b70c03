"""Are training steps as fast and as small as those of another build?

Runs `bench_step` of both builds in turn, so that both see the same state of the machine, and compares round by round:
the time of a step (median of a run's steps), the peak of what is allocated, and the peak of resident memory, which
also counts the pages of the program itself. A ratio is the median over rounds of `new / old`; its range over rounds
says how far to trust it.

    python two_builds.py --old 'target/old/examples/bench_step' --new 'target/release/xtask bench-step' --out two_builds.md
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

WORKS = ["bert-base-lora", "bert-base-full", "bert-base-houlsby", "bert-base-prefix", "minilm-lora-mrpc", "llama-0.5b-lora"]


def measure(command: str, work: str, dtype: str, steps: int) -> dict:
    """One run of `bench_step`: the JSON object that it prints."""
    arguments = [*shlex.split(command), "--work", work, "--dtype", dtype, "--steps", str(steps), "--warmup", "1"]
    return json.loads(subprocess.run(arguments, stdout=subprocess.PIPE, text=True, check=True).stdout)


def row(work: str, dtype: str, old: list[dict], new: list[dict]) -> str:
    """A line of the table for the rounds of one work."""
    cells = [work, dtype]
    mebibyte = 2.0**20
    for key, unit, digits in (("median_step_s", 1.0, 3), ("peak_live_bytes", mebibyte, 1), ("peak_rss_bytes", mebibyte, 0)):
        pairs = [(a[key], b[key]) for a, b in zip(old, new)]
        ratios = [b / a for a, b in pairs]
        middle = [statistics.median(side) / unit for side in zip(*pairs)]
        cells += [f"{value:.{digits}f}" for value in middle]
        cells.append(f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    return f"| {' | '.join(cells)} |"


def main() -> int:
    """Measure, and write the table after every work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", required=True, help="the command of the other build")
    parser.add_argument("--new", required=True, help="the command of this build")
    parser.add_argument("--works", nargs="+", default=WORKS)
    parser.add_argument("--dtypes", nargs="+", default=["f32"], choices=["f32", "bf16"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="measured steps of a run, after one that is not")
    parser.add_argument("--out", type=Path, required=True, help="the table, as Markdown")
    arguments = parser.parse_args()
    lines = [
        "| work | dtype | step, old (s) | new | ratio | allocated, old (MiB) | new | ratio | resident, old (MiB) | new | ratio |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for work in arguments.works:
        for dtype in arguments.dtypes:
            old, new = [], []
            for number in range(arguments.rounds):
                # Who goes first changes: the second of a pair finds a warmer processor.
                sides = [(arguments.old, old), (arguments.new, new)]
                for command, runs in sides if number % 2 == 0 else reversed(sides):
                    runs.append(measure(command, work, dtype, arguments.steps))
            lines.append(row(work, dtype, old, new))
            print(lines[-1], flush=True)
            arguments.out.write_text("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
