"""Make crates/train/tests/golden_answers.json: answers decoded from logits, and their scores.

    python make_answers.py DIRECTORY

DIRECTORY has three files as their authors publish them: `utils_qa.py` of transformers'
examples/pytorch/question-answering (it needs numpy and tqdm), and SQuAD's `evaluate-v1.1.py` and
`evaluate-v2.0.py` (https://rajpurkar.github.io/SQuAD-explorer/).
"""

import importlib.util
import json
import random
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np

OUTPUT = Path(__file__).parents[2] / "crates/train/tests/golden_answers.json"
TEXTS = [
    ("the Eiffel Tower", ["Eiffel Tower", "tower"]),
    ("Eiffel", ["the Eiffel Tower"]),
    ("The  U.S. army, in 1944!", ["US Army in 1944", "army"]),
    ("a an the", ["the"]),
    ("a", ["b"]),
    ("", ["something"]),
    ("Nothing", ["something", "nothing at all"]),
    ("the theory of a than", ["theory of than"]),
    ("snake_case words", ["snakecase words"]),
    ("a cat and a cat", ["cat and dog and cat"]),
    ("308", ["308", "308 points"]),
    ("Émile ZOLA", ["émile zola"]),
    ("136 次", ["136 次", "136"]),
    ("黑豹队的防守", ["黑豹队"]),
    ("one\u00a0two", ["one two"]),
    ("“quoted” – dash", ["quoted dash", "“quoted” dash"]),
    ("x-ray", ["xray", "x ray"]),
    ("A-b the-c", ["ab thec"]),
    ("6½ sacks", ["6½", "six"]),
    ("an apple a day", ["apple day"]),
    ("THE END.", ["end", "the end"]),
]


def module(path: Path, arguments: list[str]):
    """A module of a file; scripts that read arguments when they are imported get some."""
    spec = importlib.util.spec_from_file_location(path.stem.replace("-", "_").replace(".", "_"), path)
    loaded = importlib.util.module_from_spec(spec)
    with patch.object(sys, "argv", [path.name, *arguments]):
        spec.loader.exec_module(loaded)
    return loaded


def scores(directory: Path) -> list[dict]:
    """Exact match and F1 of each pair by both scripts."""
    first = module(directory / "evaluate-v1.1.py", [])
    second = module(directory / "evaluate-v2.0.py", [])
    cases = []
    for prediction, answers in [*TEXTS, ("", []), ("guess", []), ("the", []), ("an", ["the", "cat"])]:
        question = {"id": "q", "answers": [{"text": text} for text in answers]}
        dataset = [{"paragraphs": [{"qas": [question]}]}]
        old = first.evaluate(dataset, {"q": prediction}) if answers else None
        exact, f1 = second.get_raw_scores(dataset, {"q": prediction})
        cases.append(
            {
                "prediction": prediction,
                "answers": answers,
                "version_1": old and [old["exact_match"] / 100, old["f1"] / 100],
                "version_2": [float(exact["q"]), float(f1["q"])],
            }
        )
    return cases


def decoding(directory: Path) -> list[dict]:
    """Random windows over a text, and the answer that is decoded from their logits."""
    post = module(directory / "utils_qa.py", []).postprocess_qa_predictions
    generator, cases = random.Random(11), []
    words = "where did she go when rain fell over old hills and rivers rose again in march".split()
    for number in range(24):
        version_2 = number % 2 == 1
        text = [generator.choice(words) for _ in range(generator.randint(6, 40))]
        context, at, offsets = " ".join(text), 0, []
        for word in text:
            offsets.append((at, at + len(word)))
            at += len(word) + 1
        size, step = 12, 8
        starts = range(0, max(1, len(offsets) - size + step), step)
        windows, features = [], []
        for start in starts:
            part = offsets[start : start + size]
            own = [None, None, None, *part, None]
            logits = [[round(generator.gauss(0, 2), 3), round(generator.gauss(0, 2), 3)] for _ in own]
            if number % 4 == 3:
                logits[0] = [6.0 + round(generator.random(), 3), 5.0]
            windows.append({"offsets": own, "logits": logits})
            features.append({"example_id": "q", "offset_mapping": own})
        length = generator.choice([1, 3, 30])
        # transformers pads the windows of a batch; padding never wins.
        longest = max(len(window["logits"]) for window in windows)
        pad = lambda window, side: [it[side] for it in window["logits"]] + [-100.0] * (longest - len(window["logits"]))
        logits = [np.array([pad(window, side) for window in windows], dtype=np.float32) for side in (0, 1)]
        examples = Examples(context)
        with patch("builtins.open"), patch("json.dumps", side_effect=json.dumps) as dumped:
            answers = post(examples, features, tuple(logits), version_2, 20, length, 0.0, str(directory))
        nbest = dumped.call_args_list[1].args[0]["q"]
        answer = answers["q"]
        probability = next(it["probability"] for it in nbest if it["text"] == answer)
        cases.append(
            {
                "context": context,
                "windows": windows,
                "version_2_with_negative": version_2,
                "max_answer_length": length,
                "answer": answer,
                "probability": float(probability),
            }
        )
    return cases


class Examples:
    """One question, as a data set has it."""

    def __init__(self, context: str):
        self.row = {"id": "q", "context": context}

    def __getitem__(self, key):
        return [self.row[key]]

    def __iter__(self):
        return iter([self.row])

    def __len__(self):
        return 1


def main() -> None:
    """Write the cases."""
    directory = Path(sys.argv[1])
    golden = {"scores": scores(directory), "decoding": decoding(directory)}
    OUTPUT.write_text(json.dumps(golden, ensure_ascii=False, separators=(",", ":")).replace("},{", "},\n{") + "\n")


if __name__ == "__main__":
    main()
