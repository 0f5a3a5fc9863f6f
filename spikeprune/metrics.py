"""The official GLUE metrics of a task, as torchmetrics (their states are reduced over processes by torchmetrics)."""

from __future__ import annotations

from collections.abc import Mapping

from torchmetrics import MetricCollection, PearsonCorrCoef, SpearmanCorrCoef
from torchmetrics.classification import BinaryF1Score, BinaryMatthewsCorrCoef, MulticlassAccuracy

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
