"""Where a training step's processor time goes: a table of operations, their share, and the rate that each reaches.

    cargo build --profile profiling -p xtask
    python profile_step.py --rust target/profiling/xtask --dtype f32 --out profile.md

Samples the benchmark's BERT-base LoRA step (16x128 tokens) with `perf record` (Debian: linux-perf), sorts each sample by
the functions on its stack, and leaves out what happens once: drawing random weights and putting them in order. Rates
count the operations or bytes that the algorithm needs, by the formulas below, over the processor time of the samples.
Ceilings are given: `--peak`, in GFLOP/s of one core, from `cargo bench -p epiphyte-kernels --bench gemm`, and
`--bandwidth`, in GB/s of one core.
"""

import argparse
import json
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

# BERT-base with rank 8 on query and value; 16 rows of 128 tokens.
LAYERS, WIDTH, MIDDLE, RANK = 12, 768, 3072, 8
TOKENS, LENGTH, ROWS = 2048, 128, 16

# The first whose words are all on the stack. The left operand is put in order in every product: x changes.
OPERATIONS = [
    ("once: random weights", ["random::"]),
    ("once: putting the base in order", ["PackedWeight", "pack_rows"]),
    ("attention, forward and backward", ["attention::"]),
    ("frozen products: arithmetic", ["gemm::weight", "gemm::tile"]),
    ("frozen products: putting activations in order", ["gemm::weight"]),
    ("low-rank products and other products", ["matmul"]),
    ("GELU, forward and backward", ["activation"]),
    ("residual and norm, forward and backward", ["norm"]),
    ("optimizer", ["adamw"]),
    ("Burn's tensors and tape", ["burn"]),
    ("waiting for the other thread", ["sched"]),
    ("waiting for the other thread", ["futex"]),
]


def floating_point_operations() -> dict[str, float]:
    """Of one step. The last layer computes only the rows that the head reads above its attention; below the first
    layer's queries, keys and values nothing wants a gradient."""
    projection, feed_forward = 2 * WIDTH**2, 2 * WIDTH * MIDDLE
    whole = 4 * projection + 2 * feed_forward
    above = projection + 2 * feed_forward
    forward = (LAYERS - 1) * TOKENS * whole + TOKENS * 3 * projection + ROWS * above
    backward = (LAYERS - 2) * TOKENS * whole + TOKENS * above + TOKENS * 3 * projection + ROWS * above
    attention = LAYERS * (2 + 5) * 2 * TOKENS * LENGTH * WIDTH
    low_rank = LAYERS * 2 * 6 * 2 * TOKENS * RANK * WIDTH
    return {
        "frozen products: arithmetic": forward + backward,
        "attention, forward and backward": attention,
        "low-rank products and other products": low_rank,
    }


def bytes_moved() -> dict[str, float]:
    """Of one step: each operand read and each result written once."""
    middle, state = 4 * TOKENS * MIDDLE, 4 * TOKENS * WIDTH
    return {
        "GELU, forward and backward": (LAYERS - 1) * (2 + 3) * middle,
        # There: two operands and the result; back: result and gradient in, gradient out.
        "residual and norm, forward and backward": (LAYERS - 1) * 2 * (3 + 3) * state,
    }


def stacks(data: Path):
    """The stack of each sample, innermost function first."""
    command = ["perf", "script", "-i", data, "-F", "ip,sym"]
    stack: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as script:
        for line in script.stdout:
            name = line.strip().partition(" ")[2]
            if name:
                stack.append(name)
            elif stack:
                yield stack
                stack = []
    if stack:
        yield stack


def operation(stack: list[str]) -> str:
    """The operation that a stack belongs to."""
    text = "\n".join(stack)
    found = (name for name, words in OPERATIONS if all(word in text for word in words))
    return next(found, "everything else")


def main() -> None:
    """Record, sort, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rust", type=Path, required=True)
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--peak", type=float, required=True, help="GFLOP/s of one core in this type")
    parser.add_argument("--peak-f32", type=float, help="the same in f32, in which attention and low ranks compute")
    parser.add_argument("--bandwidth", type=float, required=True, help="GB/s of one core")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    hertz = 99
    with tempfile.TemporaryDirectory() as work:
        data = Path(work) / "perf.data"
        bench = [arguments.rust, "bench-step", "--work", "bert-base-lora", "--dtype", arguments.dtype]
        bench += ["--steps", str(arguments.steps - 1), "--warmup", "1"]
        record = ["perf", "record", "-q", "-e", "cpu-clock", "-F", str(hertz), "--call-graph=dwarf,16384", "-o", data]
        report = subprocess.run([*record, *bench], stdout=subprocess.PIPE, check=True, text=True).stdout
        samples = Counter(map(operation, stacks(data)))
    for once in [name for name in samples if name.startswith("once")]:
        del samples[once]
    total = sum(samples.values())
    operations, moved = floating_point_operations(), bytes_moved()
    lines = ["| operation | share | processor time a step | rate of one core | of its ceiling |", "| --- | --- | --- | --- | --- |"]
    for name, count in samples.most_common():
        seconds = count / hertz / arguments.steps
        rate, share = "", ""
        if name in operations:
            reached = operations[name] / seconds / 1e9
            peak = arguments.peak if name.startswith("frozen") else arguments.peak_f32 or arguments.peak
            rate, share = f"{reached:.0f} GFLOP/s", f"{reached / peak:.0%}"
        if name in moved:
            reached = moved[name] / seconds / 1e9
            rate, share = f"{reached:.1f} GB/s", f"{reached / arguments.bandwidth:.0%}"
        lines.append(f"| {name} | {count / total:.1%} | {seconds:.3f} s | {rate} | {share} |")
    step = json.loads(report.splitlines()[-1])["median_step_s"]
    lines.append(f"\nA step took {step:.2f} s under the profiler; {total} samples.")
    arguments.out.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
