#!/usr/bin/env python3
r"""Text from data with the small decoder that ships with the project: four methods on the E2E NLG challenge, one table.

Each method is tried at three learning rates for a fifth of the steps, the best by its loss on 500 rows of the
development set, and then trained with three seeds; the texts for the test set's 630 inputs are scored as the challenge
does. METEOR is among the scores with --meteor-data, the directory `meteor` of PyPI's package pycocoevalcap: its tables of
synonyms and paraphrases are not part of the project.

    cargo build --release -p epiphyte --features cli
    pip install pycocoevalcap
    python benches/e2e_table.py --epiphyte target/release/epiphyte --data e2e_nlg --out e2e_table.md \
        --meteor-data "$(python -c 'import pycocoevalcap; print(pycocoevalcap.__path__[0])')/meteor"
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

BASE = pathlib.Path(__file__).parent.parent / "crates/epiphyte/assets/quickstart/base"
# Learning rates that are tried, lowest first.
METHODS = {
    "full": ("", [5e-4, 1.5e-3, 5e-3]),
    "lora": ("--rank 8 --target-modules q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj", [1e-3, 3e-3, 1e-2]),
    "prefix-tuning": ("--num-virtual-tokens 20", [3e-3, 1e-2, 3e-2]),
    "houlsby": ("", [1e-3, 3e-3, 1e-2]),
}
SCORES = {"e2e_bleu": "BLEU", "nist": "NIST", "meteor": "METEOR", "e2e_rouge_l": "ROUGE-L", "cider": "CIDEr"}
SEEDS = [0, 1, 2]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epiphyte", required=True, type=pathlib.Path)
    parser.add_argument("--data", required=True, type=pathlib.Path)
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--meteor-data", type=pathlib.Path, help="directory of METEOR's tables [default: no METEOR]")
    arguments = parser.parse_args()
    data = arguments.data
    scores = {key: name for key, name in SCORES.items() if key != "meteor" or arguments.meteor_data}
    metrics = ["--metrics", "e2e"]
    if arguments.meteor_data:
        metrics = ["--metrics", "e2e,meteor", "--meteor-data", str(arguments.meteor_data)]

    def epiphyte(command, *words):
        words = [str(arguments.epiphyte.resolve()), *command.split(), *words]
        done = subprocess.run([*words, "--quiet", "--json", "--threads", str(arguments.threads)],
                              capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{' '.join(words)}: {done.stderr}")
        return json.loads(done.stdout)

    def train(method, flags, rate, steps, seed, output):
        return epiphyte(
            f"train --model {BASE} --task causal-lm --train-data {data}/trainset.csv --eval-data {data}/devset.csv "
            f"--max-eval-rows 500 --completion-column ref --max-length 256 --batch-size 16 --max-steps {steps} "
            f"--method {method} {flags} --learning-rate {rate} --seed {seed} --output {output} --overwrite",
            "--prompt-template", "{mr}\\n")

    lines = ["| method | trainable | learning rate | loss | " + " | ".join(scores.values()) + " |",
             "| --- | ---: | ---: | ---: |" + " ---: |" * len(scores)]
    with tempfile.TemporaryDirectory() as directory:
        for method, (flags, rates) in METHODS.items():
            tried = {rate: train(method, flags, rate, arguments.steps // 5, 100, f"{directory}/{method}")
                     for rate in rates}
            rate = min(rates, key=lambda rate: tried[rate]["metrics"]["loss"])
            print(method, {rate: run["metrics"]["loss"] for rate, run in tried.items()}, flush=True)
            runs = []
            for seed in SEEDS:
                output = f"{directory}/{method}-{seed}"
                run = train(method, flags, rate, arguments.steps, seed, output)
                scored = epiphyte(
                    f"eval --model {BASE} --adapter {output} --data {data}/testset_w_refs.csv "
                    "--max-new-tokens 100 --batch-size 64", *metrics)
                runs.append((run, scored))
                print(method, seed, run["metrics"]["loss"], scored, flush=True)

            def of(values):
                values = list(values)
                return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"

            lines.append(
                f"| {method} | {runs[0][0]['trainable_parameters']:,} | {rate:g} "
                f"| {of(run['metrics']['loss'] for run, _ in runs)} | "
                + " | ".join(of(scored[key] for _, scored in runs) for key in scores) + " |")
            print(lines[-1], flush=True)
    arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
