"""The texts and labels of a GLUE task, from one of three sources."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from spikeprune.config.tasks import TRAIN, Task
from spikeprune.data import synthetic
from spikeprune.data.cells import label, sentence
from spikeprune.data.hub import HubUnavailable, load_splits
from spikeprune.data.raw import RawData, Split, assemble
from spikeprune.data.tsv import read_tsv
from spikeprune.errors import InputError, nearest

SOURCES = ("auto", "hub", "dir", "embedded")


def load_raw(
    *,
    task: Task,
    source: str,
    directory: str | None,
    hub: str,
    seed: int,
    train_limit: int | None,
    embedded_train: int,
    embedded_dev: int,
    select: float = 0.0,
    generated: bool = False,
) -> RawData:
    """The task's data from `source`: `dir` (a GLUE directory in the original TSV layout), `hub` (a dataset name, or a
    local dataset directory that `datasets.load_dataset` reads), `embedded` (generated from `seed`), or `auto`.

    `auto` takes `directory` if there is one, else the hub or its cache. Only where `generated` allows it an unreachable
    or unknown hub dataset makes it take the embedded corpus, whose banner says so; a fault in the data never does.
    `train_limit`: the first so many training examples of a shuffle by `seed`; `select`: see `raw.assemble`, no dev
    split is then read.
    Everything wrong with the data is an `InputError` that names file and line.
    """
    if source not in SOURCES:
        raise InputError(f"data.source is {source!r}; it must be one of {nearest(source, SOURCES)}")
    if source == "dir" and not directory:
        raise InputError("data.source=dir needs data.dir, a GLUE directory in the original TSV layout")
    if directory and source in ("hub", "embedded"):
        raise InputError(f"data.dir={directory} is not read with data.source={source}; drop one of the two")
    if train_limit is not None and train_limit < 1:
        raise InputError(f"data.train_limit must be at least 1, not {train_limit}; null takes all examples")

    note, wanted = "", (TRAIN,) if select else (TRAIN, *task.dev)
    if directory:
        source, origin = "dir", directory
        splits, note = _from_dir(task, Path(directory), wanted)
    elif source in ("hub", "auto"):
        try:
            splits, note = _from_hub(task, hub, wanted)
            source, origin = "hub", hub
        except HubUnavailable:
            if source == "hub" or not generated:
                raise
            source = "embedded"
    if source == "embedded":
        splits = synthetic.generate(task, seed=seed, train=embedded_train, dev=embedded_dev)
        splits = {name: Split(*columns) for name, columns in splits.items()}
        origin = f"generated, seed {seed}, {embedded_train} + {embedded_dev} examples"
    banner = {
        "dir": f"data: {task.name} from directory {origin}{note}",
        "hub": f"data: {task.name} from hub dataset {origin}{note}",
        "embedded": f"data: {task.name} from the EMBEDDED corpus ({origin}{note}): generated sentences, "
        "these are NOT GLUE scores",
    }[source]
    return assemble(
        task,
        splits,
        source=source,
        origin=origin,
        banner=banner,
        seed=seed,
        train_limit=train_limit,
        select=select,
    )


def _from_dir(task: Task, directory: Path, wanted: Sequence[str]) -> tuple[dict[str, Split], str]:
    if not directory.is_dir():
        raise InputError(f"data.dir={directory} is not a directory; give one that holds {task.folder}/train.tsv")
    if not (directory / task.folder).is_dir():
        raise InputError(f"data.dir={directory} has no directory {task.folder}, where task {task.name} would be")
    splits, skipped = {}, 0
    for name in wanted:
        *columns, count = read_tsv(task, directory / task.folder / task.files[name])
        splits[name] = Split(*columns)
        skipped += count
    return splits, f", {skipped} unusable rows skipped" if skipped else ""


def _from_hub(task: Task, hub: str, wanted: Sequence[str]) -> tuple[dict[str, Split], str]:
    instead = "give data.dir=DIRECTORY with GLUE's TSV files, another data.hub, or data.source=embedded (generated)"
    loaded = load_splits(hub, task.name, instead=instead)
    splits, notes = {}, []
    for name in wanted:
        if name not in loaded:
            raise InputError(f"dataset {hub!r} ({task.name}) has no split {name!r}, only {', '.join(loaded)}")
        splits[name], note = _hub_split(task, f"dataset {hub!r} ({task.name}), split {name}", loaded[name])
        notes += [note] if note and note not in notes else []
    return splits, "".join(notes)


def _hub_split(task: Task, where: str, rows) -> tuple[Split, str]:
    for column in (*task.columns, "label"):
        if column not in rows.column_names:
            raise InputError(f"{where}: no column {column!r}")
    if not len(rows):
        raise InputError(f"{where} is empty; choose another data.hub")
    read, note = _label_reader(task, where, getattr(rows.features["label"], "names", None))

    def cells(column: str, convert: Callable[[Any], Any]) -> list:
        found = []
        for row, value in enumerate(rows[column]):
            try:
                found.append(convert(value))
            except ValueError as error:
                raise InputError(
                    f"{where}, row {row}, column {column!r}: {error}; correct it or choose another data.hub"
                ) from None
        return found

    labels = cells("label", read)
    first, *second = [cells(column, partial(sentence, may_be_empty=task.empty_sentences)) for column in task.columns]
    return Split(first, second[0] if second else None, labels), note


def _label_reader(task: Task, where: str, names: list[str] | None) -> tuple[Callable[[Any], int | float], str]:
    """How the cells of a label column are read, and what the banner must say of it. `names`: of a column that stores
    numbers for names, in an order that need not be the task's; where none is the task's, theirs is taken for it."""
    read = partial(label, task)
    if names is None or task.regression:
        return read, ""
    known = {}
    for i, name in enumerate(names):
        with contextlib.suppress(ValueError):
            known[i] = label(task, name)
    if not known:
        own = ", ".join(task.labels)
        return read, f", whose label names {', '.join(names)} are taken in this order for {own}"
    if len(set(known.values())) < len(names):
        raise InputError(
            f"{where}: the label names {', '.join(names)} are not those of the task, {', '.join(task.labels)}"
        )
    return lambda value: known[value] if value in known else read(value), ""
