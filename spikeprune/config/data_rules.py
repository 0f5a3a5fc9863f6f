"""What the keys under `data` may be together: rules of `validation.py`."""

from __future__ import annotations

from collections.abc import Iterator

from spikeprune.config.derived import runs, wrong
from spikeprune.config.schema import Config
from spikeprune.config.tasks import CLASS_METRICS, CUSTOM, NUMBER_METRICS, TASKS
from spikeprune.errors import Problem, nearest

OWN = ("train_file", "dev_file", "text", "label", "metrics")  # keys of the task custom alone


def sources(config: Config) -> Iterator[Problem]:
    d = config.data
    if d.source == "dir" and not d.dir and config.task != CUSTOM:
        yield ("data.dir", "data.source"), "data.source = dir: needs data.dir, a GLUE directory"
    if d.source in ("hub", "embedded") and d.dir and config.task != CUSTOM:
        text = f"contradicts data.source = {d.source}; use data.source=dir, or leave it out"
        yield wrong(config, "data.dir", text, "data.source")
    if runs(config, "general_kd") and not d.corpus:
        text = "needs data.corpus, the text it learns from; or set it to 0"
        yield ("stages.general_kd.epochs", "data.corpus"), f"stages.general_kd.epochs: {text}"


def own(config: Config) -> Iterator[Problem]:
    """The task custom reads files or a hub data set, whose columns have to be named."""
    d = config.data
    if config.task != CUSTOM:
        for name in OWN:
            if getattr(d, name):
                yield wrong(config, f"data.{name}", f"is for task=custom, not for {config.task}", "task")
        return
    if d.dir or d.source in ("dir", "embedded"):
        text = "is for GLUE; task=custom reads data.train_file, or data.source=hub with data.hub"
        yield wrong(config, "data.dir" if d.dir else "data.source", text, "task")
    elif d.source == "hub" and (d.train_file or d.dev_file):
        text = "is not read with data.source = hub; leave one of the two out"
        yield wrong(config, "data.train_file" if d.train_file else "data.dev_file", text, "data.source")
    elif d.source != "hub" and not d.train_file:
        yield ("data.train_file", "task"), "task = custom: needs data.train_file, or data.source=hub with data.hub"
    if not 1 <= len(d.text) <= 2 or len(set(d.text)) < len(d.text):
        text = "task = custom: needs data.text, [column] or the two columns of a pair"
        yield ("data.text", "task"), f"{text}, not {d.text}" if d.text else text
    if not d.label:
        yield ("data.label", "task"), "task = custom: needs data.label, the column of the labels"
    elif d.label in d.text:
        yield wrong(config, "data.label", "is a column of data.text too", "data.text")


def metrics(config: Config) -> Iterator[Problem]:
    names, kinds = config.data.metrics, (CLASS_METRICS, NUMBER_METRICS)
    for name in names:
        if name not in CLASS_METRICS + NUMBER_METRICS:
            known = nearest(name, CLASS_METRICS + NUMBER_METRICS)
            yield ("data.metrics",), f"data.metrics: unknown {name}; choose from {known}"
            return
    if len(set(names)) < len(names):
        yield wrong(config, "data.metrics", "must name each metric once")
    if names and not any(set(names) <= set(kind) for kind in kinds):
        of = f"{', '.join(CLASS_METRICS)} of classes or {', '.join(NUMBER_METRICS)} of numbers"
        yield wrong(config, "data.metrics", f"must be of one kind, {of}")


def class_weights(config: Config) -> Iterator[Problem]:
    weights = config.data.class_weights
    listed = isinstance(weights, list) and len(weights) > 1
    if not (weights in ("none", "balanced") or listed and all(_above_0(weight) for weight in weights)):
        text = "must be none, balanced, or a list of numbers above 0, one for each class"
        yield wrong(config, "data.class_weights", text)
    elif weights != "none" and config.task in TASKS and TASKS[config.task].regression:
        yield wrong(config, "data.class_weights", f"{config.task} is a regression", "task")


def _above_0(weight: object) -> bool:
    return isinstance(weight, int | float) and not isinstance(weight, bool) and weight > 0
