"""The networks that finished stages leave in the run directory, written and read back."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from spikeprune import jsonfile
from spikeprune.builders.networks import student_values
from spikeprune.models.compact import built, fill, restored
from spikeprune.models.student import Student
from spikeprune.models.teacher import Teacher
from spikeprune.parts import Parts
from spikeprune.rundir import WEIGHTS, RunDir, read_verified, write_json, write_weights
from spikeprune.summary import data_facts


def leave_teacher(parts: Parts, directory: RunDir, teacher: Teacher, facts: dict[str, Any]) -> None:
    folder = directory.make_stage("teacher")
    bert = teacher.bert
    bert.config.architectures = [type(bert).__name__]
    bert.config.save_pretrained(folder)
    parts.tokenizer.save_pretrained(folder)
    sha = write_weights(folder / WEIGHTS, bert.state_dict())
    record(parts, directory, "teacher", None, {**facts, "weights": sha})


def leave_student(
    parts: Parts, directory: RunDir, name: str, parent: str | None, student: Student, facts: dict[str, Any]
) -> None:
    folder = directory.make_stage(name)
    write_json(folder / "student.json", student_values(parts))
    sha = write_weights(folder / WEIGHTS, student.state_dict())
    record(parts, directory, name, parent, {**facts, "weights": sha})


def record(parts: Parts, directory: RunDir, name: str, parent: str | None, facts: dict[str, Any]) -> None:
    made_from = None if parent is None else {"stage": parent, "weights": directory.record(parent)["weights"]}
    if name != "teacher" and parent is None:
        made_from = {"stage": "teacher", "weights": directory.record("teacher")["weights"]}
    stage = asdict(parts.stage(name))
    directory.finish(name, {"stage": name, "parent": made_from, "config": stage, "data": data_facts(parts), **facts})


def load_teacher(parts: Parts, directory: RunDir) -> Teacher:
    """The teacher as its stage left it, frozen."""
    directory.verified("teacher")
    folder = directory.stage("teacher")
    jsonfile.read(folder / "config.json", f"remove {folder} to make the stage again", ("model_type",))
    return Teacher.load(directory.stage("teacher"), classes=parts.task.num_labels).freeze()


def load_student(directory: RunDir, name: str, weights: str | None = None, sparse: bool = False) -> Student:
    """The student that a finished stage left. `weights`: what it is to be quantized to, where that is another kind than
    the stage knew of, which quantized nothing yet. `sparse`: it is to lose synapses."""
    return rebuild(directory.stage(name), directory.weights(name), weights, sparse)


def load_compact(directory: RunDir) -> Student:
    """The student that `spikeprune compact` left."""
    data = read_verified(directory.compact / WEIGHTS, directory.compact_record()["weights"])
    return restored(directory.compact, safetensors.torch.load(data))


def rebuild(folder: Path, state: dict[str, torch.Tensor], weights: str | None = None, sparse: bool = False) -> Student:
    path, remedy = folder / "student.json", f"remove {folder} to make the stage again"
    values = jsonfile.read(path, remedy, ("weights",))
    values["sparse"] = sparse or values.get("sparse", False)
    if weights not in (None, values["weights"]) and not state.get("strength", 0.0):
        values["weights"] = weights
        state = {key: value for key, value in state.items() if key != "strength"}
        state |= {} if weights == "float" else {"strength": torch.zeros(())}
    student = built(path, values, remedy)
    fill(student, state, path, remedy)
    return student
