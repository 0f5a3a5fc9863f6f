"""The predictions that a stage's scores were made from, kept beside its record; what they say of how sure the scores
are."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from spikeprune import distributed
from spikeprune.config.tasks import Task
from spikeprune.experiment.context import RunContext
from spikeprune.experiment.run_directory import RunDirectory
from spikeprune.files import jsonfile
from spikeprune.files.atomic import write_atomic
from spikeprune.training.modules.task import TaskModule
from spikeprune.training.significance import intervals, mcnemar

FILE = "predictions.json"
Predictions = dict[str, Any]  # split, and of each of its examples in order: labels, predictions


def write(context: RunContext, directory: RunDirectory, stage: str, module: TaskModule) -> None:
    """Write those of the module's last validation, on the first dev split, into the stage's directory, before its
    record. Every process calls it."""
    split = context.task.dev_splits[0]
    rows = np.concatenate(context.data.val_dataloader()[0].batches(0)).tolist()  # of this process
    own = dict(zip(rows, torch.cat(module.predicted).tolist(), strict=True))
    found = {row: value for part in distributed.gather(own) for row, value in part.items()}
    labels = context.raw.splits[split].labels
    kept = {"split": split, "labels": labels, "predictions": [found[row] for row in range(len(labels))]}
    distributed.from_rank_zero(lambda: write_atomic(directory.make_stage(stage) / FILE, jsonfile.dumps(kept) + "\n"))


def read(directory: RunDirectory, stage: str) -> Predictions | None:
    """None where the stage has kept none."""
    path = directory.stage(stage) / FILE
    return jsonfile.read(path, f"remove {path.parent} to make the stage again") if path.is_file() else None


def significance(task: Task, directory: RunDirectory, stage: str) -> dict[str, Any]:
    """`intervals` of the stage's metrics; of a student's classes also `mcnemar`, the test against the teacher (first)
    on the same examples. Empty where no predictions are kept."""
    own, teacher = read(directory, stage), read(directory, "teacher")
    if own is None:
        return {}
    found: dict[str, Any] = {"intervals": intervals(task, own["predictions"], own["labels"])}
    if stage != "teacher" and not task.regression and teacher is not None and teacher["labels"] == own["labels"]:
        found["mcnemar"] = mcnemar(teacher["predictions"], own["predictions"], own["labels"])
    return found
