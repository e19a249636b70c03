"""Writes golden_statistics.json: means, intervals and tests as SciPy and statsmodels compute them.

    pip install scipy statsmodels
    python make_golden_statistics.py
"""

import json
from pathlib import Path

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests

generator = np.random.default_rng(0)


def case(one, other):
    one, other = np.asarray(one), np.asarray(other)
    n = len(one)
    low, high = stats.t.interval(0.95, n - 1, loc=one.mean(), scale=stats.sem(one))
    # Ties have no rank of their own: the exact distribution is then that of all choices of signs.
    ties = len(set(np.abs(one - other))) < n
    method = stats.PermutationMethod(n_resamples=np.inf) if ties else "auto"
    return {
        "one": one.tolist(),
        "other": other.tolist(),
        "mean": float(one.mean()),
        "deviation": float(one.std(ddof=1)),
        "interval": [float(low), float(high)],
        "paired_t": float(stats.ttest_rel(one, other).pvalue),
        "signed_rank": float(stats.wilcoxon(one, other, method=method).pvalue),
    }


cases = []
for n in (2, 3, 4, 5, 8, 15, 25, 50, 60, 100):
    for shift in (0.0, 0.02, 0.2):
        one = generator.normal(0.8 + shift, 0.03, n)
        cases.append(case(one, generator.normal(0.8, 0.03, n)))
# Accuracies over few examples have ties.
for n in (4, 6, 9, 12):
    one = np.round(generator.normal(0.75, 0.1, n) * 32) / 32
    other = np.round(generator.normal(0.6, 0.1, n) * 32) / 32
    keep = one != other
    cases.append(case(one[keep], other[keep]))

holm = []
for n in (1, 2, 5, 20):
    probabilities = generator.uniform(0, 1, n) ** 3
    corrected = multipletests(probabilities, method="holm")[1]
    holm.append({"probabilities": probabilities.tolist(), "corrected": corrected.tolist()})

path = Path(__file__).with_name("golden_statistics.json")
path.write_text(json.dumps({"cases": cases, "holm": holm}) + "\n")
