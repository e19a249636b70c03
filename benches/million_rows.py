"""What a million rows cost at the start of a run: seconds until its end after two steps, and the largest resident memory.

    cargo build --release -p epiphyte --features cli
    python benches/million_rows.py --epiphyte target/release/epiphyte --model MODEL --texts SST-2/train.tsv --work DIRECTORY

The rows are lines of TEXTS (text, tab, label), joined at random until each has 60 characters. MODEL may have any
tokenizer; a small one shows what the data cost.
"""

import argparse
import json
import random
import resource
import subprocess
import time
from pathlib import Path


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ["epiphyte", "model", "texts", "work"]:
        parser.add_argument(f"--{name}", type=Path, required=True)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    data = given.work / "million.jsonl"
    if not data.exists():
        random.seed(0)
        texts = [line.rsplit("\t", 1)[0].strip() for line in given.texts.read_text().splitlines()[1:]]
        with data.open("w") as file:
            for row in range(1_000_000):
                text = random.choice(texts)
                while len(text) < 60:
                    text += " " + random.choice(texts)
                file.write(json.dumps({"text": text, "label": row % 2}) + "\n")
    command = [given.epiphyte, "train", "--model", given.model, "--task", "sequence-classification", "--labels", "0,1",
               "--train-data", data, "--text-columns", "text", "--label-column", "label", "--max-length", "128",
               "--max-steps", "2", "--output", given.work / "adapter", "--overwrite", "--quiet"]
    start = time.perf_counter()
    subprocess.run(command, check=True)
    seconds = time.perf_counter() - start
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    size = data.stat().st_size
    print(json.dumps({"file_bytes": size, "seconds": seconds, "peak_rss_bytes": memory, "of_file": memory / size}))


if __name__ == "__main__":
    main()
