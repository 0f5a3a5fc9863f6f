"""The official GLUE metrics of a task, and how faithful a student is to its teacher: torchmetrics, which reduce their
states over processes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection, PearsonCorrCoef, SpearmanCorrCoef
from torchmetrics.classification import BinaryF1Score, BinaryMatthewsCorrCoef, MulticlassAccuracy

from spikeprune.distill import soft_loss
from spikeprune.tasks import Task

# The average of accuracy is "micro": plain correct/total, as GLUE counts, not torchmetrics' mean over classes.
METRICS = {
    "accuracy": lambda task: MulticlassAccuracy(num_classes=task.num_labels, average="micro"),
    "f1": lambda task: BinaryF1Score(),
    "matthews": lambda task: BinaryMatthewsCorrCoef(),
    "pearson": lambda task: PearsonCorrCoef(),
    "spearman": lambda task: SpearmanCorrCoef(),
}


def task_metrics(task: Task) -> MetricCollection:
    """Fractions (not percent) under GLUE's names: fed with (predictions, labels).

    Both are long[B] class indices, or float32[B] values for regression. Cast half-precision values to float32 first:
    correlations lose digits otherwise. A constant prediction has no correlation: Pearson and Spearman are then nan.
    """
    return MetricCollection({name: METRICS[name](task) for name in task.metrics})


def main_metric(task: Task, results: Mapping[str, float]) -> float:
    """The one number GLUE ranks this task by: the mean of `task.main` (mrpc and qqp: accuracy and F1; stsb: both
    correlations; cola: Matthews). `results` maps metric names to values of one dev split; a missing name is a
    KeyError."""
    return sum(float(results[name]) for name in task.main) / len(task.main)


class Fidelity(Metric):
    """How near a student's answers are to its teacher's, beside how many are right
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
