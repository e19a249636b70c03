"""Make crates/train/tests/golden_class_sets.json: scores of multi-label predictions by scikit-learn.

    pip install scikit-learn
    python make_class_sets.py
"""

import json
import random
from pathlib import Path

from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support

OUTPUT = Path(__file__).parents[2] / "crates/train/tests/golden_class_sets.json"


def case(predictions: list[list[bool]], labels: list[list[bool]]) -> dict:
    """The scores of some examples."""
    precision, recall, f1, _ = precision_recall_fscore_support(labels, predictions, average="micro", zero_division=0)
    each = precision_recall_fscore_support(labels, predictions, average=None, zero_division=0)
    return {
        "predictions": predictions,
        "labels": labels,
        "scores": {
            "accuracy": accuracy_score(labels, predictions),
            "f1": f1,
            "f1_macro": f1_score(labels, predictions, average="macro", zero_division=0),
            "precision": precision,
            "recall": recall,
        },
        "classes": [[float(p), float(r), float(f), int(s)] for p, r, f, s in zip(*each)],
    }


def main() -> None:
    """Write the cases: random ones, one without predictions, one without labels, one that is all right."""
    generator = random.Random(3)
    table = lambda rows, p: [[generator.random() < p for _ in range(4)] for _ in range(rows)]
    cases = [case(table(n, 0.4), table(n, 0.4)) for n in (1, 5, 20, 40)]
    labels = table(6, 0.5)
    cases += [case([[False] * 4] * 6, labels), case(labels, [[False] * 4] * 6), case(labels, labels)]
    OUTPUT.write_text(json.dumps(cases, separators=(",", ":")).replace("},{", "},\n{") + "\n")


if __name__ == "__main__":
    main()
