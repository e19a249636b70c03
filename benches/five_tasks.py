"""LoRA beside a head alone on STS-B, CoLA, RTE, WNUT-17 and XQuAD: makes the data's directory and runs `five_tasks.toml`.

    cargo build --release -p epiphyte --features cli
    python benches/five_tasks.py --epiphyte target/release/epiphyte --data-dir DATA --model-dir MINILM --work DIRECTORY

DATA has glue_stsb, glue_cola and glue_rte with the files of GLUE, wnut17 with those of WNUT-17
(https://github.com/leondz/emerging_entities_17) and xquad with xquad.en.json. Of XQuAD's 240 paragraphs every fifth is
for evaluation, the others are for training.
"""

import argparse
import json
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ["epiphyte", "data-dir", "model-dir", "work"]:
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    data = arguments.work / "data"
    data.mkdir(parents=True, exist_ok=True)
    for name in ["glue_stsb", "glue_cola", "glue_rte"]:
        shutil.copytree(arguments.data_dir / name, data / name, dirs_exist_ok=True)
    wnut = arguments.data_dir / "wnut17"
    shutil.copy(wnut / "wnut17train.conll", data / "wnut17_train.conll")
    shutil.copy(wnut / "emerging.test.annotated", data / "wnut17_test.conll")
    articles = json.loads((arguments.data_dir / "xquad" / "xquad.en.json").read_text())["data"]
    paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
    for name, is_for in [("train", lambda at: at % 5 > 0), ("dev", lambda at: at % 5 == 0)]:
        own = [paragraph for at, paragraph in enumerate(paragraphs) if is_for(at)]
        squad = {"version": "1.1", "data": [{"title": "", "paragraphs": own}]}
        (data / f"xquad_{name}.json").write_text(json.dumps(squad))
    threads = ["--threads", str(arguments.threads)] if arguments.threads else []
    subprocess.run([arguments.epiphyte, "compare", HERE / "five_tasks.toml", "--model", arguments.model_dir,
                    "--data", data, "--output", arguments.work / "report", *threads], check=True)


if __name__ == "__main__":
    main()
