"""Writes golden_metrics.json: what transformers, scikit-learn and SciPy say.

    pip install torch transformers scikit-learn scipy
    python crates/train/tests/make_golden.py

The unit tests of schedule.rs, metrics.rs and early_stopping.rs compare with it.
"""

import json
import math
import pathlib
import random
import types
import warnings

import numpy
import scipy.stats
import torch
from sklearn import metrics
from transformers import (
    EarlyStoppingCallback,
    TrainerControl,
    TrainingArguments,
    get_constant_schedule,
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

warnings.filterwarnings("ignore")
random.seed(0)
numpy.random.seed(0)


def schedule(kind, warmup_steps, total_steps):
    """The factors of steps 0 to three past the end, read off an optimizer with learning rate 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = {
        "linear": lambda: get_linear_schedule_with_warmup(optimizer, warmup_steps, total_steps),
        "cosine": lambda: get_cosine_schedule_with_warmup(optimizer, warmup_steps, total_steps),
        "constant": lambda: get_constant_schedule(optimizer),
        "constant_with_warmup": lambda: get_constant_schedule_with_warmup(optimizer, warmup_steps),
    }[kind]()
    factors = []
    for _ in range(total_steps + 4):
        factors.append(float(scheduler.get_last_lr()[0]))
        optimizer.step()
        scheduler.step()
    return dict(kind=kind, warmup_steps=warmup_steps, total_steps=total_steps, factors=factors)


def warmup_ratio(total_steps, ratio):
    """transformers 5 takes a ratio as a `warmup_steps` below 1."""
    arguments = TrainingArguments(output_dir="unused", warmup_steps=ratio, use_cpu=True)
    return total_steps, ratio, arguments.get_warmup_steps(total_steps)


def classification(classes, predictions, labels):
    average = "binary" if classes == 2 else "macro"
    scores = {
        "accuracy": metrics.accuracy_score(labels, predictions),
        "f1": metrics.f1_score(labels, predictions, average=average),
        "precision": metrics.precision_score(labels, predictions, average=average),
        "recall": metrics.recall_score(labels, predictions, average=average),
        "matthews": metrics.matthews_corrcoef(labels, predictions),
    }
    if classes > 2:
        scores["f1_weighted"] = metrics.f1_score(labels, predictions, average="weighted")
    confusion = metrics.confusion_matrix(labels, predictions, labels=range(classes)).tolist()
    return dict(
        classes=classes,
        predictions=predictions,
        labels=labels,
        confusion=confusion,
        per_class=[
            [float(score) for score in scores[:3]] + [int(scores[3])]
            for scores in zip(
                *metrics.precision_recall_fscore_support(labels, predictions, labels=range(classes))
            )
        ],
        scores={name: float(score) for name, score in scores.items()},
    )


def regression(predictions, targets):
    predictions, targets = [float(x) for x in predictions], [float(x) for x in targets]
    scores = {
        "pearson": scipy.stats.pearsonr(predictions, targets)[0],
        "spearman": scipy.stats.spearmanr(predictions, targets)[0],
        "mse": metrics.mean_squared_error(targets, predictions),
        "mae": metrics.mean_absolute_error(targets, predictions),
    }
    scores = {name: None if math.isnan(score) else float(score) for name, score in scores.items()}
    return dict(predictions=predictions, targets=targets, scores=scores)


def early_stopping(patience, min_delta, greater_is_better, values):
    """Drives the callback as `Trainer._maybe_log_save_evaluate` does: the callback first sees the best
    value before this evaluation, then `Trainer._determine_best_metric` takes a strictly better one."""
    callback = EarlyStoppingCallback(patience, min_delta)
    arguments = types.SimpleNamespace(metric_for_best_model="score", greater_is_better=greater_is_better)
    state = types.SimpleNamespace(best_metric=None)
    control = TrainerControl()
    best_steps, stops, best_step = [], [], None
    for step, value in enumerate(values):
        control.should_training_stop = False
        callback.on_evaluate(arguments, state, control, {"eval_score": value})
        operator = numpy.greater if greater_is_better else numpy.less
        if state.best_metric is None or operator(value, state.best_metric):
            state.best_metric, best_step = value, step
        best_steps.append(best_step)
        stops.append(control.should_training_stop)
    return dict(
        patience=patience,
        min_delta=min_delta,
        greater_is_better=greater_is_better,
        values=values,
        best_steps=best_steps,
        stops=stops,
    )


def random_classes(classes, size, accuracy):
    labels = [random.randrange(classes) for _ in range(size)]
    predictions = [
        label if random.random() < accuracy else random.randrange(classes) for label in labels
    ]
    return classes, predictions, labels


def random_regression(size, noise, digits):
    targets = numpy.round(numpy.random.uniform(0, 5, size), digits)
    return numpy.round(targets + noise * numpy.random.randn(size), digits), targets


golden = {
    "schedules": [
        schedule(kind, warmup_steps, total_steps)
        for kind in ["linear", "cosine", "constant", "constant_with_warmup"]
        for warmup_steps, total_steps in [(0, 10), (3, 10), (1, 1), (10, 10), (12, 10), (7, 61), (0, 1)]
    ],
    "warmup_ratios": [
        warmup_ratio(total_steps, ratio)
        for total_steps in [1, 7, 10, 30, 99, 100, 563, 100_000]
        for ratio in [0.0, 0.03, 0.06, 0.07, 0.1, 0.29, 0.5, 0.999]
    ],
    "classification": [
        # Random ones, then: all right, all wrong, one class predicted, one class labelled, one class that
        # never occurs, one example.
        *(classification(*random_classes(c, n, a)) for c in (2, 3, 5) for n in (7, 60) for a in (0, 0.8)),
        classification(2, [0, 1, 1, 0], [0, 1, 1, 0]),
        classification(2, [1, 0, 0, 1], [0, 1, 1, 0]),
        classification(2, [0, 0, 0, 0], [0, 1, 1, 0]),
        classification(2, [1, 1, 1, 1], [0, 1, 1, 0]),
        classification(2, [0, 1, 1, 0], [0, 0, 0, 0]),
        classification(2, [0, 1, 1, 0], [1, 1, 1, 1]),
        classification(2, [0, 0], [0, 0]),
        classification(2, [1, 1], [1, 1]),
        classification(2, [1], [0]),
        classification(3, [0, 0, 0], [1, 1, 2]),
        classification(3, [0, 2, 2, 0], [0, 2, 0, 0]),
        classification(4, [3, 3, 3], [3, 3, 3]),
        classification(4, [1], [2]),
    ],
    "regression": [
        # Random ones with ever more ties, then: exact, reversed, constants, two examples, huge and tiny.
        *(regression(*random_regression(n, s, d)) for n in (5, 80) for s in (0.1, 2) for d in (9, 1, 0)),
        regression([1, 2, 3, 4], [1, 2, 3, 4]),
        regression([4, 3, 2, 1], [1, 2, 3, 4]),
        regression([2, 2, 2], [1, 2, 3]),
        regression([1, 2, 3], [0.1, 0.1, 0.1]),
        regression([2, 2, 2], [2, 2, 2]),
        regression([1, 2], [5, 3]),
        regression([1, 1, 1, 2], [1, 1, 3, 3]),
        regression([1e150, 2e150, -3e150], [1, 2, 3]),
        regression([1e-200, 2e-200, -3e-200], [1, 2, 3]),
        regression([-0.0, 0.0, 1.0], [1, 2, 3]),
    ],
    "early_stopping": [
        early_stopping(patience, min_delta, greater, [round(random.uniform(0.5, 1), 2) for _ in range(12)])
        for patience in (1, 2, 4)
        for min_delta in (0.0, 0.05)
        for greater in (True, False)
    ]
    + [
        # Small gains move the best evaluation, yet use the patience up.
        early_stopping(3, 0.1, True, [0.5, 0.55, 0.6, 0.65, 0.7, 0.85]),
        early_stopping(2, 0.0, True, [0.5, 0.5, 0.5, 0.5]),
    ],
}

path = pathlib.Path(__file__).with_name("golden_metrics.json")
lines = ",\n".join(
    f'"{name}": [\n' + ",\n".join(json.dumps(case) for case in cases) + "\n]" for name, cases in golden.items()
)
path.write_text("{\n" + lines + "\n}\n")
