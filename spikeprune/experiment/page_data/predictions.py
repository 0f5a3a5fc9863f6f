"""The predictions of teacher and student on a dev split: right and wrong by class, calibration, the largest errors.
Numbers from logits and labels alone, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

BINS = 10  # of the confidence
WORST = 12
POINTS = 600  # of a regression that are shown


def classified(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """Of float64 `logits [S, C]` and `labels [S]`: the confusion matrix (true by predicted), scores of each class, and
    calibration."""
    classes = logits.shape[1]
    predicted = logits.argmax(1)
    confusion = torch.zeros(classes, classes, dtype=torch.long)
    confusion.index_put_((labels, predicted), torch.ones_like(labels), accumulate=True)
    return {
        "confusion": confusion.tolist(),
        "classes": class_scores(confusion),
        "calibration": calibration(logits, labels),
    }


def class_scores(confusion: Tensor) -> list[dict[str, float]]:
    """Precision, recall and F1 of each class, 0 where nothing is counted, and its examples."""
    right, true, predicted = (x.double() for x in (confusion.diag(), confusion.sum(1), confusion.sum(0)))
    found = {
        "precision": right / predicted.clamp(min=1),
        "recall": right / true.clamp(min=1),
        "f1": 2 * right / (true + predicted).clamp(min=1),
        "examples": true,
    }
    return [{name: values[i].item() for name, values in found.items()} for i in range(len(confusion))]


def calibration(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """Expected calibration error (Guo et al. 2017, arXiv 1706.04599) over bins of equal width of the confidence, the
    largest probability; of each bin that holds examples: their number, mean confidence and accuracy."""
    confidence, predicted = logits.softmax(1).max(1)
    right = (predicted == labels).double()
    places = (confidence * BINS).long().clamp(max=BINS - 1)
    filled, ece = [], 0.0
    for i in range(BINS):
        here = places == i
        if count := int(here.sum()):
            mean, accuracy = confidence[here].mean().item(), right[here].mean().item()
            ece += count / len(labels) * abs(mean - accuracy)
            filled.append({"bin": [i / BINS, (i + 1) / BINS], "count": count, "confidence": mean, "accuracy": accuracy})
    return {"ece": ece, "bins": filled}


def regressed(predictions: Tensor, labels: Tensor) -> dict[str, Any]:
    """Of float64 `[S]`: points (true, predicted), evenly drawn from the order of the split, and the mean error."""
    rows = torch.linspace(0, len(labels) - 1, min(POINTS, len(labels))).round().long()
    points = list(zip(labels[rows].tolist(), predictions[rows].tolist(), strict=True))
    return {"points": points, "rmse": (predictions - labels).square().mean().sqrt().item(), "examples": len(labels)}


def hardest(errors: Tensor) -> list[int]:
    """The examples of the largest `errors [S]`, worst first."""
    return errors.argsort(descending=True, stable=True)[:WORST].tolist()


def class_errors(logits: Tensor, labels: Tensor) -> Tensor:
    """-log of the true class' probability, `[S]`."""
    return -logits.log_softmax(1).gather(1, labels[:, None])[:, 0]


def described(
    texts: Sequence[Sequence[str]], rows: Sequence[int], logits: Tensor, labels: Tensor
) -> list[dict[str, Any]]:
    """Text, label and prediction of single examples: with classes the probability of each, else the number."""
    predicted = logits.softmax(1) if logits.shape[1] > 1 else logits
    return [{"text": list(texts[i]), "label": labels[i].item(), "prediction": predicted[i].tolist()} for i in rows]
