"""Make crates/train/tests/golden_spans.json: scores of tagged sentences, as seqeval computes them.

    pip install seqeval
    python make_spans.py

Half of the cases are tags of one scheme (IOB2, IOB1, IO, IOBES), the others random, so that spans
also begin and end where they should not.
"""

import json
import random
import warnings
from pathlib import Path

from seqeval.metrics import accuracy_score, classification_report, f1_score, precision_score, recall_score

OUTPUT = Path(__file__).parents[2] / "crates/train/tests/golden_spans.json"
TYPES = ["PER", "LOC", "creative-work"]


def spans_to_tags(scheme: str, generator: random.Random) -> list[str]:
    """A sentence of random spans, tagged in a scheme."""
    tags, before = [], None
    while len(tags) < 12:
        kind = generator.choice([None, *TYPES])
        length = generator.randint(1, 3)
        if kind is None:
            tags += ["O"] * length
        elif scheme == "IOB2":
            tags += [f"B-{kind}"] + [f"I-{kind}"] * (length - 1)
        elif scheme == "IOB1":
            tags += [f"{'B' if before == kind else 'I'}-{kind}"] + [f"I-{kind}"] * (length - 1)
        elif scheme == "IO":
            tags += [f"I-{kind}"] * length
        elif length == 1:
            tags += [f"S-{kind}"]
        else:
            tags += [f"B-{kind}"] + [f"I-{kind}"] * (length - 2) + [f"E-{kind}"]
        before = kind
    return tags


def case(labels: list[list[str]], predictions: list[list[str]]) -> dict:
    """The scores of some sentences."""
    report = classification_report(labels, predictions, output_dict=True, zero_division=0)
    types = {name: row for name, row in report.items() if not name.endswith(" avg")}
    return {
        "labels": labels,
        "predictions": predictions,
        "accuracy": accuracy_score(labels, predictions),
        "precision": precision_score(labels, predictions, zero_division=0),
        "recall": recall_score(labels, predictions, zero_division=0),
        "f1": f1_score(labels, predictions, zero_division=0),
        "types": {
            name: [row["precision"], row["recall"], row["f1-score"], int(row["support"])] for name, row in types.items()
        },
    }


def main() -> None:
    """Write the cases."""
    warnings.filterwarnings("ignore")
    generator, cases = random.Random(5), []
    for scheme in ["IOB2", "IOB1", "IO", "IOBES"] * 3:
        labels = [spans_to_tags(scheme, generator) for _ in range(3)]
        every = sorted({tag for row in labels for tag in row} | {"O"})
        change = lambda tag: generator.choice(every) if generator.random() < 0.25 else tag
        cases.append(case(labels, [[change(tag) for tag in row] for row in labels]))
    every = ["O"] + [f"{position}-{kind}" for position in "BIES" for kind in TYPES]
    for _ in range(10):
        row = lambda: [generator.choice(every) for _ in range(generator.randint(1, 14))]
        labels = [row() for _ in range(2)]
        cases.append(case(labels, [[generator.choice([tag, generator.choice(every)]) for tag in row] for row in labels]))
    cases.append(case([["O", "O"]], [["O", "B-PER"]]))
    cases.append(case([["B-PER", "I-PER"]], [["O", "O"]]))
    OUTPUT.write_text(json.dumps(cases, indent=None, separators=(",", ":")).replace("},{", "},\n{") + "\n")


if __name__ == "__main__":
    main()
