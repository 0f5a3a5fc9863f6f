"""What a column of labels is: classes with names, or the numbers of a regression; and the weights of classes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any

from spikeprune.config.tasks import NUMBER_METRICS, Task
from spikeprune.data.cells import DECIMAL, missing
from spikeprune.errors import InputError

COMMA = re.compile(r"[+-]?\d+,\d+", re.ASCII)  # a number as many languages write it
MOST = 50  # different whole numbers that are taken for classes without a word
Label = str | int | float


def spelt(value: Any) -> Label:
    """A cell as the name of a class, or a number. Text keeps its spelling but for blanks around it, truth values are
    `true` and `false`. Raises ValueError for a missing value and for what is neither text nor a number."""
    if missing(value) or isinstance(value, str) and not value.strip():
        raise ValueError("the label is missing")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, int | float) and isfinite(value):
        return value
    raise ValueError(f"label {value!r} is neither text nor a finite number")


def infer_classes(
    labels: Sequence[Label], metrics: Sequence[str], place: Callable[[int], str]
) -> tuple[str, ...] | None:
    """The class names in the order of their indices, or None for a regression.

    Text is classes, in the order of its characters. Whole numbers are classes too, in their order, of which there are
    up to 50; numbers among which one has a fraction (or a point) are a regression. `metrics` decide where they are
    given: those of numbers make any numbers a regression, those of classes make whole numbers classes. `place(i)`: of a
    label, for messages. Raises InputError for labels of both kinds, and where the rule does not tell.
    """
    numbers = [number(label) for label in labels]
    fraction = next((i for i, n in enumerate(numbers) if isinstance(n, float)), None)
    text = next((i for i, n in enumerate(numbers) if n is None), None)
    wanted = bool(metrics) and set(metrics) <= set(NUMBER_METRICS)  # a regression
    if text is not None:
        if all(COMMA.fullmatch(str(label)) for label in labels):
            what = f"label {labels[text]!r} has a comma, as all the others"
            raise InputError(f"{place(text)}: {what}; write numbers with a point")
        if fraction is not None or wanted and any(n is not None for n in numbers):
            what = f"label {labels[text]!r} is no number, as the others are"
            raise InputError(f"{place(text)}: {what}; correct it or drop this row")
        if wanted:
            what = f"label {labels[text]!r} is no number, but data.metrics has {metrics[0]}, of numbers"
            raise InputError(f"{place(text)}: {what}; give metrics of classes, or another data.label")
        names = tuple(sorted({class_name(label) for label in labels}))
    elif wanted or (fraction is not None and not metrics):
        return None
    else:
        if (broken := next((i for i, n in enumerate(numbers) if n % 1), None)) is not None:
            what = f"label {labels[broken]!r} is a number and no class, but data.metrics has {metrics[0]}"
            raise InputError(f"{place(broken)}: {what}, of classes; give pearson or spearman, or another data.label")
        names = tuple(str(int(n)) for n in sorted(set(numbers)))
        if len(names) > MOST and not metrics:
            what = f"{len(names)} different whole numbers may be classes or the numbers of a regression"
            raise InputError(f"data.label: {what}; say which by data.metrics=[accuracy] or data.metrics=[pearson]")
    if len(names) > len(labels) / 2 and len(labels) > 20:
        what = f"{len(names)} different labels in {len(labels)} examples are no classes"
        raise InputError(f"data.label: {what}; name the right column")
    return names


def class_name(label: Label) -> str:
    """`2`, `2.0` and the number 2 are one class."""
    n = number(label)
    return str(label) if n is None or n % 1 else str(int(n))


def number(label: Label) -> int | float | None:
    """A whole number as int, one with a fraction or a point as float; None for text. `007` is text: numbers that are
    names keep their zeros."""
    if not isinstance(label, str):
        return label
    if not DECIMAL.fullmatch(label) or not isfinite(float(label)):
        return None
    if label.lstrip("+-").isdigit():
        return int(label) if str(int(label)) == label.lstrip("+") else None
    return float(label)


def class_weights(given: str | list[float], task: Task, labels: Sequence[int | float]) -> list[float] | None:
    """The weight of each class in the hard loss, `data.class_weights`; None for none.

    `balanced`: inverse to a class' share of the training `labels`, 1 on the mean over the examples; a class without
    examples has 1. Raises InputError for a regression, and where another number of weights is listed than there are
    classes.
    """
    if given == "none":
        return None
    if task.labels is None:
        raise InputError(f"data.class_weights = {given}: the labels are numbers, not classes; leave it out")
    counts = [labels.count(i) for i in range(task.num_labels)]
    if given == "balanced":
        present = sum(count > 0 for count in counts)
        return [len(labels) / (present * count) if count else 1.0 for count in counts]
    if len(given) != task.num_labels:
        names = f"{task.num_labels}: {', '.join(task.labels)}"
        raise InputError(f"data.class_weights = {given}: must be a weight for each class, of which there are {names}")
    return [float(weight) for weight in given]
