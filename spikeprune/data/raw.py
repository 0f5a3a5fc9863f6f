"""A task's texts and labels by split, wherever they come from, with a fingerprint."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from random import Random

from spikeprune.config.tasks import CUSTOM, SELECT, TRAIN, Task, selecting
from spikeprune.data.split import stratified
from spikeprune.errors import InputError
from spikeprune.files import jsonfile

KEYS = {"dir": "dir", "hub": "hub", "embedded": "embedded", "file": "train_file"}  # that name a source


@dataclass(frozen=True)
class Split:
    first: list[str]
    second: list[str] | None  # None where the task has single sentences
    labels: list[int] | list[float]  # class indices, or scores for regression

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: list[int]) -> Split:
        second = None if self.second is None else [self.second[i] for i in rows]
        return Split([self.first[i] for i in rows], second, [self.labels[i] for i in rows])

    def texts(self) -> list[tuple[str, ...]]:
        """Of each example its sentence, or both."""
        return list(zip(*[column for column in (self.first, self.second) if column is not None], strict=True))


@dataclass(frozen=True)
class RawData:
    """Text and labels of a task: `splits` has "train" and then the task's dev splits, by their hub names."""

    task: Task
    splits: dict[str, Split]
    source: str  # dir | hub | embedded | file
    origin: str  # the directory or file as given, the hub name, or how the sentences were generated
    fingerprint: str  # 16 hex digits of the sha256 of all splits
    banner: str  # one line that names the source


def assemble(
    task: Task,
    splits: dict[str, Split],
    *,
    source: str,
    origin: str,
    banner: str,
    seed: int,
    train_limit: int | None,
    select: float = 0.0,
    learnt: bool = True,
) -> RawData:
    """Splits that were read as `RawData`. `train_limit`: the first so many training examples of a shuffle by `seed`;
    `select`: the share of these that is held out as the only split that is scored. Raises InputError for a split whose
    labels are all the same, unless nothing is `learnt` from it, and for too few examples to hold any out."""
    if train_limit is not None and train_limit < len(splits[TRAIN]):
        rows = Random(seed).sample(range(len(splits[TRAIN])), train_limit)
        splits = {**splits, TRAIN: splits[TRAIN].take(rows)}
        banner += f", {train_limit} training examples drawn with seed {seed}"
    if select:
        task, splits = selecting(task), held_out(splits[TRAIN], select, seed)
        banner += f"; scored on {len(splits[SELECT])} training examples held out by seed {seed}, dev is not read"
    raw = RawData(task, splits, source, origin, _fingerprint(task, splits), banner)
    if learnt:
        _refuse_one_label(raw, train_limit)
    return raw


def held_out(train: Split, share: float, seed: int) -> dict[str, Split]:
    """The training split in two, stratified. Raises InputError where it is too small."""
    kept, held = stratified(train.labels, share, seed, train.texts())
    if not held or not kept:
        raise InputError(f"data.select = {share}: {len(train)} training examples are too few for it; set another share")
    return {TRAIN: train.take(kept), SELECT: train.take(held)}


def _fingerprint(task: Task, splits: dict[str, Split]) -> str:
    digest = hashlib.sha256(task.name.encode())
    if task.name == CUSTOM:
        digest.update(jsonfile.dumps(task.labels).encode())
    for name, split in splits.items():
        digest.update(jsonfile.dumps([name, split.first, split.second, split.labels]).encode())
    return digest.hexdigest()[:16]


def _refuse_one_label(raw: RawData, limit: int | None) -> None:
    """Nothing is learnt from examples that are all alike, and no metric says anything about them."""
    for name, split in raw.splits.items():
        if len(set(split.labels)) > 1:
            continue
        only = split.labels[0] if raw.task.regression else raw.task.labels[split.labels[0]]
        drawn = f" that data.train_limit={limit} draws" if limit and name == TRAIN else ""
        raise InputError(
            f"data.{KEYS[raw.source]}={raw.origin}, task {raw.task.name}, split {name}: all {len(split)} "
            f"examples{drawn} have the same label, {only}; give data with at least two"
        )
