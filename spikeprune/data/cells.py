"""One cell of a table as a sentence or a label; a ValueError says what is wrong with it, its caller says where."""

from __future__ import annotations

import re
import sys
from typing import Any

from spikeprune.config.tasks import Task

DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


def sentence(value: Any, *, may_be_empty: bool = False) -> str:
    """The text without blanks around it."""
    if missing(value):
        raise ValueError("the sentence is missing")
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    if "\0" in value:
        raise ValueError("the sentence has a NUL character; is the file binary, or text in UTF-16?")
    if not value.strip() and not may_be_empty:
        raise ValueError("the sentence is empty")
    return value.strip()


def label(task: Task, value: Any) -> int | float:
    """The class index, or a regression's score. Text is a class by its name (case ignored) or as GLUE's files spell it;
    a number is an index, which a fraction, a truth value or -1 (GLUE's unlabelled rows) is not."""
    if missing(value):
        raise ValueError("the label is missing")
    if task.regression:
        return _score(task, value)
    if isinstance(value, str):
        return _class(task, value)
    if not _number(value) or value != value // 1:
        raise ValueError(f"label {value!r} is no class index")
    if value == -1:
        raise ValueError("label -1 marks a row without a label, as in GLUE's test splits")
    if not 0 <= value < task.num_labels:
        raise ValueError(f"label {value!r} is not in 0 to {task.num_labels - 1}")
    return int(value)


def missing(value: Any) -> bool:
    return value is None or value != value  # a table's nan


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _class(task: Task, text: str) -> int:
    if text in task.tsv_labels:
        return task.tsv_labels.index(text)
    names = [name.casefold() for name in task.labels]
    if text.strip().casefold() not in names:
        spellings = dict.fromkeys([*task.tsv_labels, *task.labels])
        raise ValueError(f"label {text!r} is none of {', '.join(spellings)}")
    return names.index(text.strip().casefold())


def _score(task: Task, value: Any) -> float:
    low, high = task.range or (-sys.float_info.max, sys.float_info.max)
    written = DECIMAL.fullmatch(value.strip()) if isinstance(value, str) else _number(value)
    number = float(value) if written else float("nan")
    if not low <= number <= high:  # nan fails too
        bounds = f"from {low:g} to {high:g}" if task.range else "as 3, 0.5 or 1e-3"
        raise ValueError(f"score {value!r} is not a number {bounds}")
    return number
