"""How sure a score is: bootstrap intervals over the examples that were scored, and McNemar's test of two models on the
same examples. Pure functions of predictions and labels."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import numpy as np
import torch

from spikeprune.config.tasks import Task
from spikeprune.training.metrics import CORRELATED, COUNTED, Confusion

RESAMPLES = 2000
COVERED = 0.95  # share of the resampled scores that an interval holds


def intervals(task: Task, predictions: Sequence[float], labels: Sequence[float]) -> dict[str, list[float]]:
    """`[low, high]` of each of the task's metrics: the percentile bootstrap over examples (Efron 1979), of a fixed
    seed."""
    resample = correlations if task.regression else counts
    scores = np.array(resample(task, predictions, labels, np.random.default_rng(0)))  # [RESAMPLES, metrics]
    outside = (1 - COVERED) / 2
    low, high = np.quantile(scores, [outside, 1 - outside], axis=0)
    return {name: [float(low[i]), float(high[i])] for i, name in enumerate(task.metrics)}


def counts(task: Task, predictions: Sequence[int], labels: Sequence[int], random: np.random.Generator) -> list:
    """A confusion matrix of examples that are drawn again is a multinomial sample of it."""
    found, n = confusion(predictions, labels, task.num_labels), len(labels)
    cells = np.array(found, dtype=np.float64).ravel() / n
    drawn = random.multinomial(n, cells, size=RESAMPLES).reshape(RESAMPLES, *np.shape(found)).tolist()
    return [[COUNTED[name](matrix) for name in task.metrics] for matrix in drawn]


def correlations(
    task: Task, predictions: Sequence[float], labels: Sequence[float], random: np.random.Generator
) -> list:
    x, y = (torch.tensor(values, dtype=torch.float64) for values in (predictions, labels))
    rows = torch.from_numpy(random.integers(len(x), size=(RESAMPLES, len(x))))
    return [[CORRELATED[name](x[drawn], y[drawn]) for name in task.metrics] for drawn in rows]


def confusion(predictions: Sequence[int], labels: Sequence[int], classes: int) -> Confusion:
    """`[true class][predicted class]`."""
    found = [[0] * classes for _ in range(classes)]
    for predicted, true in zip(predictions, labels, strict=True):
        found[true][predicted] += 1
    return found


def mcnemar(one: Sequence[int], other: Sequence[int], labels: Sequence[int]) -> dict[str, float]:
    """McNemar's exact test (1947; Dietterich 1998): `first` and `second` count the examples on which one model alone is
    right, `p` is the chance of counts at least as unequal where both are right equally often."""
    rights = [(a == true, b == true) for a, b, true in zip(one, other, labels, strict=True)]
    first, second = rights.count((True, False)), rights.count((False, True))
    n = first + second
    tail = sum(comb(n, k) for k in range(min(first, second) + 1)) / 2**n
    return {"first": first, "second": second, "p": min(1.0, 2 * tail)}
