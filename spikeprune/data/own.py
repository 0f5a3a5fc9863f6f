"""A user's own data: tables whose columns of text and labels are named, as one task with a training and a dev split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spikeprune.config.tasks import NUMBER_METRICS, TRAIN, VALIDATION, Task, custom_task
from spikeprune.data.cells import label, sentence
from spikeprune.data.classes import Label, class_name, infer_classes, spelt
from spikeprune.data.hub import load_splits
from spikeprune.data.raw import RawData, Split, assemble
from spikeprune.data.rows import Table, hub_table, open_table
from spikeprune.data.split import stratified
from spikeprune.errors import InputError

DEV_SHARE = 0.1  # of the training examples, where no dev split is given
DEV_NAMES = (VALIDATION, "dev")  # of a hub data set's split
COLUMNS = "name the columns by data.text=[…] and data.label=…"
DROP = "correct it or drop this row"


@dataclass(frozen=True)
class Columns:
    """What is read of a table."""

    text: tuple[str, ...]  # of the one or two sentences
    label: str


@dataclass(frozen=True)
class Examples:
    """A table's texts and labels before it is known what the labels are."""

    first: list[str]
    second: list[str] | None
    labels: list[Label]
    places: list[int]  # the number of each row
    table: Table

    def place(self, i: int) -> str:
        return self.table.place(self.places[i])


def load_own(
    *,
    train_file: str | None,
    dev_file: str | None,
    hub: str,
    columns: Columns,
    metrics: Sequence[str],
    seed: int,
    train_limit: int | None,
    select: float = 0.0,
    known: Task | None = None,
) -> RawData:
    """The data in `train_file` and `dev_file`, or without a `train_file` in the data set `hub` (`owner/name`, or
    `owner/name:config`). Without a dev split a tenth of the training examples is cut off by seed, stratified.
    `select`: see `raw.assemble`, no dev split is then read.

    The classes are inferred from the training labels (`classes.infer_classes`); `known`: a run's task, whose classes
    are meant, so that another label is refused. Raises InputError, with file and line, for all that is wrong.
    """
    source, origin = ("file", train_file) if train_file else ("hub", hub)
    tables = _files(train_file, None if select else dev_file) if train_file else _hub(hub)
    own_dev = dev_file is not None or VALIDATION in tables
    if select:
        tables = {TRAIN: tables[TRAIN]}
    remedy = COLUMNS if known is None else "rename the file's columns, the run's are meant"
    read = {split: read_examples(table, columns, remedy) for split, table in tables.items()}
    train = read[TRAIN]
    task = known or custom_task(columns.text, columns.label, _classes(train, columns, metrics), tuple(metrics))
    splits, note = {split: labelled(examples, task) for split, examples in read.items()}, ""
    if not own_dev:
        splits, note = cut_off(splits[TRAIN], seed)
    elif dev_file and dev_file != train_file and not select:
        note = f" and {dev_file}"
    what = "the hub data set" if source == "hub" else "the file"
    banner = f"data: {what} {origin}{note}"
    return assemble(
        task,
        splits,
        source=source,
        origin=origin,
        banner=banner,
        seed=seed,
        train_limit=train_limit,
        select=select,
        learnt=known is None,
    )


def _files(train_file: str, dev_file: str | None) -> dict[str, Table]:
    files = {TRAIN: train_file, **({VALIDATION: dev_file} if dev_file else {})}
    return {split: open_table(Path(file)) for split, file in files.items()}


def _hub(hub: str) -> dict[str, Table]:
    name, _, config = hub.partition(":")
    loaded = load_splits(name, config or None, instead="give another data.hub, or files by data.train_file")
    if TRAIN not in loaded:
        raise InputError(f"data.hub = {hub}: has no split {TRAIN!r}, only {', '.join(loaded)}; give another data set")
    dev = next((split for split in DEV_NAMES if split in loaded), None)
    chosen = {TRAIN: TRAIN, **({VALIDATION: dev} if dev else {})}
    return {key: hub_table(f"data set {hub}, split {split}", loaded[split]) for key, split in chosen.items()}


def read_examples(table: Table, columns: Columns, remedy: str) -> Examples:
    """All rows of a table. Raises InputError for a column that is missing (`remedy`: what to do then), a bad row, and a
    table without any."""
    table.needs((*columns.text, columns.label), remedy)
    texts, labels, places = [[] for _ in columns.text], [], []
    names = table.names.get(columns.label)
    for number, cells in table.rows:
        try:
            for column, name in zip(texts, columns.text, strict=True):
                column.append(read_text(cells, name))
            labels.append(_label(cells.get(columns.label), names))
        except ValueError as error:
            raise InputError(f"{table.place(number)}: {error}; {DROP}") from None
        places.append(number)
    if not labels:
        raise InputError(f"{table.name}: holds no examples; give another file")
    return Examples(texts[0], texts[1] if len(texts) > 1 else None, labels, places, table)


def read_text(cells: Any, column: str) -> str:
    """Raises ValueError for a text that is missing or empty."""
    try:
        return sentence(cells.get(column))
    except ValueError as error:
        raise ValueError(f"column {column!r}: {error}") from None


def _label(value: Any, names: list[str] | None) -> Label:
    """`names`: of a column that stores a number for each."""
    if names is None or isinstance(value, str):
        return spelt(value)
    if value is None or not 0 <= value < len(names):
        raise ValueError("the label is missing")
    return names[value]


def _classes(train: Examples, columns: Columns, metrics: Sequence[str]) -> tuple[str, ...] | None:
    """A data set that names its classes has their order, too. Raises InputError for metrics of another kind of task."""
    names = train.table.names.get(columns.label)
    found = infer_classes(train.labels, metrics, train.place) if names is None else tuple(names)
    if found is not None and set(metrics) & set(NUMBER_METRICS):
        raise InputError(f"data.metrics: {metrics[0]} is of numbers, but data.label = {columns.label} has classes")
    if "f1" in metrics and found is not None and len(found) != 2:
        raise InputError(f"data.metrics: f1 is of two classes, and here are {len(found)}; use macro_f1")
    return found


def labelled(examples: Examples, task: Task) -> Split:
    """The examples with class indices, or numbers. Raises InputError for a label that the task does not have."""
    labels = []
    for i, value in enumerate(examples.labels):
        try:
            labels.append(label(task, value if task.regression else class_name(value)))
        except ValueError as error:
            raise InputError(f"{examples.place(i)}: {error}; {DROP}") from None
    return Split(examples.first, examples.second, labels)


def cut_off(train: Split, seed: int) -> tuple[dict[str, Split], str]:
    """Training and dev split from one, and a note on it. Raises InputError where there are too few examples."""
    kept, held = stratified(train.labels, DEV_SHARE, seed, train.texts())
    if not held or not kept:
        raise InputError("data.dev_file: too few different training examples to cut a dev split off; give one")
    share = f"{len(held)} of its {len(train)} examples ({len(held) / len(train):.0%})"
    note = f"; dev split: {share}, stratified, by seed {seed}"
    return {TRAIN: train.take(kept), VALIDATION: train.take(held)}, note
