"""A data set in lines that are printed before a run: how unequal its classes are, how many texts are cut."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, pstdev

from spikeprune.config.tasks import CUSTOM, TRAIN, Task
from spikeprune.data.batching import Encoded
from spikeprune.data.raw import RawData

SHOWN = 6  # classes that are named one by one
UNEQUAL = 4.0  # largest over smallest class above which accuracy hides the small ones
WIDE = 10.0  # standard deviation of scores above which a squared error of them makes poor gradients
ALIKE = (
    "accuracy hides small classes: data.class_weights=balanced trains them alike, and "
    "'data.metrics=[macro_f1,accuracy]' scores them so"
)


def describe(raw: RawData, encoded: dict[str, Encoded]) -> list[str]:
    """Lines on the labels of the training split, and on the texts of all splits. `encoded`: their tokens."""
    labels, task = raw.splits[TRAIN].labels, raw.task
    texts = ", ".join(cut(name, encoded[name]) for name in raw.splits)
    longest = max(split.max_length for split in encoded.values())
    lines = [numbers(labels) if task.regression else classes(labels, task)]
    lines += [f"cut to {longest} tokens (data.max_length): {texts}"]
    return lines + (unscored(raw) + seen(raw) if task.name == CUSTOM else [])


def classes(labels: Sequence[int], task: Task) -> str:
    """How often each class is there, largest first, and how much more often the first than the last."""
    counts = sorted(((labels.count(i), -i) for i in range(task.num_labels)), reverse=True)
    shown = counts if len(counts) <= SHOWN else [*counts[: SHOWN // 2], *counts[-SHOWN // 2 :]]
    words = [f"{task.labels[-i]} {count} ({count / len(labels):.1%})" for count, i in shown]
    if len(shown) < len(counts):
        words.insert(SHOWN // 2, f"… {len(counts) - SHOWN} more …")
    most, least = counts[0][0], counts[-1][0]
    ratio = f"the largest {most / least:.1f} × the smallest" if least else "one without examples"
    line = f"classes of {len(labels)} training examples: {', '.join(words)}; {ratio}"
    unequal = task.name == CUSTOM and task.main == ("accuracy",) and most > UNEQUAL * least
    return f"{line}\n{ALIKE}" if unequal else line


def numbers(labels: Sequence[float]) -> str:
    """Range, mean and spread."""
    spread = pstdev(labels)
    line = f"labels of {len(labels)} training examples: {min(labels):g} to {max(labels):g}, mean {fmean(labels):.3g}, "
    line += f"standard deviation {spread:.3g}"
    return line if spread <= WIDE else f"{line}; the loss is their squared error: scale them to a deviation near 1"


def unscored(raw: RawData) -> list[str]:
    """A line for each dev split that lacks a class."""
    if raw.task.regression:
        return []
    lacking = {
        name: [label for i, label in enumerate(raw.task.labels) if i not in raw.splits[name].labels]
        for name in raw.task.dev_splits
    }
    return [
        f"{name} has no example of {', '.join(labels[:SHOWN])}{' …' * (len(labels) > SHOWN)}: no score tells of it"
        for name, labels in lacking.items()
        if labels
    ]


def seen(raw: RawData) -> list[str]:
    """A line for each dev split with texts of the training split, which make its score flatter."""
    known = set(raw.splits[TRAIN].texts())
    found = {name: sum(text in known for text in raw.splits[name].texts()) for name in raw.task.dev_splits}
    return [
        f"{count} of {len(raw.splits[name])} texts of {name} are in train too: its score flatters; drop these rows"
        for name, count in found.items()
        if count
    ]


def cut(name: str, split: Encoded) -> str:
    return f"{split.truncated / len(split):.1%} of {name}"
