"""The official GLUE metrics of a task, and how faithful a student is to its teacher, in float64. torchmetrics reduces
their states over processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from spikeprune.config.tasks import Task
from spikeprune.training.losses import soft_loss


def task_metrics(task: Task) -> Metric:
    """Fed with (predictions, labels); `compute` gives fractions (not percent) under GLUE's names, as Python floats.

    Both are long[B] class indices, or float32[B] values for regression. Cast half-precision values to float32 first:
    correlations lose digits otherwise.
    """
    return Correlations(task.metrics) if task.regression else Counts(task.metrics, classes=task.num_labels)


def main_metric(task: Task, results: Mapping[str, float]) -> float:
    """The one number GLUE ranks this task by: the mean of `task.main` (mrpc and qqp: accuracy and F1; stsb: both
    correlations; cola: Matthews). `results` maps metric names to values of one dev split; a missing name is a
    KeyError."""
    return sum(float(results[name]) for name in task.main) / len(task.main)


# ------------------------------------------------------------------------------------------------------ classification

Confusion = list[list[int]]  # [true class][predicted class]


def accuracy(confusion: Confusion) -> float:
    """Correct over total, as GLUE counts; not the mean over classes."""
    return _ratio(sum(row[i] for i, row in enumerate(confusion)), sum(map(sum, confusion)))


def f1(confusion: Confusion) -> float:
    """Of class 1 among two: 2 TP / (2 TP + FP + FN), 0 where nothing is positive, neither true nor predicted."""
    (_, false_positive), (false_negative, positive) = confusion
    return _ratio(2 * positive, 2 * positive + false_positive + false_negative)


def macro_f1(confusion: Confusion) -> float:
    """Mean of F1 over the classes that occur, among the labels or the predictions."""
    predicted = [sum(column) for column in zip(*confusion, strict=True)]
    counts = [(confusion[i][i], sum(row) + predicted[i]) for i, row in enumerate(confusion)]
    found = [2 * right / both for right, both in counts if both]
    return sum(found) / len(found) if found else 0.0


def matthews(confusion: Confusion) -> float:
    """Gorodkin's R_K (2004), for two classes Matthews' correlation; 0 where all labels or all predictions are the same.

    Exact up to the last division: products of counts are Python integers, which do not overflow or round.
    """
    true, predicted = [sum(row) for row in confusion], [sum(column) for column in zip(*confusion, strict=True)]
    right, n = sum(row[i] for i, row in enumerate(confusion)), sum(true)
    together = right * n - sum(t * p for t, p in zip(true, predicted, strict=True))
    spread = (n * n - sum(t * t for t in true)) * (n * n - sum(p * p for p in predicted))
    return together / sqrt(spread) if spread else 0.0


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


COUNTED = {"accuracy": accuracy, "macro_f1": macro_f1, "f1": f1, "matthews": matthews}


def of_majority(name: str, labels: Sequence[int], classes: int) -> float:
    """A metric of constant predictions: always the most frequent of the `labels`."""
    counts = [labels.count(i) for i in range(classes)]
    constant = counts.index(max(counts))
    return COUNTED[name]([[count * (i == constant) for i in range(classes)] for count in counts])


class Counts(Metric):
    """Metrics of the confusion matrix, whose entries are whole numbers over any number of batches and processes."""

    confusion: Tensor  # long [C, C], true by predicted

    def __init__(self, names: tuple[str, ...], *, classes: int):
        super().__init__()
        self.names = names
        self.add_state("confusion", torch.zeros(classes, classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        """Class indices of the same examples, long [B]."""
        cells = torch.arange(self.confusion.numel(), device=labels.device)
        found = labels * len(self.confusion) + predictions == cells[:, None]  # [C C, B]
        self.confusion = self.confusion + found.sum(1).view_as(self.confusion)

    def compute(self) -> dict[str, float]:
        confusion = self.confusion.tolist()
        return {name: COUNTED[name](confusion) for name in self.names}


# ---------------------------------------------------------------------------------------------------------- regression


def pearson(x: Tensor, y: Tensor) -> float:
    """Of two float64 [S]. Constant numbers correlate with nothing: 0. Numbers that are not finite give nan."""
    if not (x.isfinite().all() and y.isfinite().all()):
        return float("nan")
    if x.min() == x.max() or y.min() == y.max():
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    return (x @ y / (x.norm() * y.norm())).clamp(-1, 1).item()


def spearman(x: Tensor, y: Tensor) -> float:
    """Pearson's correlation of the ranks."""
    if not (x.isfinite().all() and y.isfinite().all()):
        return float("nan")
    return pearson(_ranks(x), _ranks(y))


def _ranks(x: Tensor) -> Tensor:
    """From 1, float64 [S]; equal numbers share the mean of their ranks."""
    _, place, count = x.unique(return_inverse=True, return_counts=True)
    return (count.cumsum(0) - (count - 1) / 2).double()[place]


CORRELATED = {"pearson": pearson, "spearman": spearman}


class Correlations(Metric):
    """Metrics of all predictions beside all scores, kept until they are asked for."""

    predictions: list[Tensor]
    scores: list[Tensor]

    def __init__(self, names: tuple[str, ...]):
        super().__init__()
        self.names = names
        for state in ("predictions", "scores"):
            self.add_state(state, [], dist_reduce_fx="cat")

    def update(self, predictions: Tensor, scores: Tensor) -> None:
        """Values of the same examples, [B]."""
        self.predictions.append(predictions.detach().double())
        self.scores.append(scores.double())

    def compute(self) -> dict[str, float]:
        x, y = dim_zero_cat(self.predictions), dim_zero_cat(self.scores)
        return {name: CORRELATED[name](x, y) for name in self.names}


# ------------------------------------------------------------------------------------------------------------ fidelity


class Fidelity(Metric):
    """How near a student's predictions are to its teacher's, beside how many are right
    (Stanton et al. 2021, arXiv 2106.05945: top-1 agreement, predictive KL).

    `agreement`: the share of examples on which both have the same largest logit. `divergence`: the mean of
    KL(teacher || student) at temperature 1, in nats. Regression has a `divergence` alone, the mean squared difference.
    """

    sums: Tensor  # examples that agree, sum of their divergences, examples

    def __init__(self, *, regression: bool):
        super().__init__()
        self.regression = regression
        # one state, so that processes exchange one message; float64: near the teacher a KL is below float32's rounding
        self.add_state("sums", torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, student: Tensor, teacher: Tensor) -> None:
        """Logits of the same examples, `[B, C]`; regression `[B, 1]`."""
        agree = (student.argmax(-1) == teacher.argmax(-1)).sum()
        apart = soft_loss(student.double(), teacher.double(), temperature=1.0, regression=self.regression).sum()
        self.sums = self.sums + torch.stack([agree.double(), apart, apart.new_full((), len(student))])

    def compute(self) -> dict[str, Tensor]:
        agree, apart, examples = self.sums
        found = {"agreement": agree / examples, "divergence": apart / examples}
        return {"divergence": found["divergence"]} if self.regression else found
