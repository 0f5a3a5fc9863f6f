"""Checkpoints of finished stages in the run directory, written and loaded."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import safetensors.torch
import torch

from spikeprune.config.derived import folds, prunes_synapses, weights
from spikeprune.config.schema import Config
from spikeprune.experiment.context import RunContext
from spikeprune.experiment.run_directory import WEIGHTS, RunDirectory, read_verified, write_weights
from spikeprune.experiment.summary import data_facts
from spikeprune.files import jsonfile
from spikeprune.files.atomic import write_json
from spikeprune.models.checkpoint_facts import label_names
from spikeprune.models.compaction import built, fill, restored
from spikeprune.models.description import FILE, description, read_description
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.teacher import Teacher


def save_teacher(context: RunContext, directory: RunDirectory, teacher: Teacher, facts: dict[str, Any]) -> None:
    folder = directory.make_stage("teacher")
    bert = teacher.bert
    bert.config.architectures = [type(bert).__name__]
    if context.task.labels is not None:
        bert.config.update(label_names(context.task.labels))
    bert.config.save_pretrained(folder)
    context.tokenizer.save_pretrained(folder)
    sha = write_weights(folder / WEIGHTS, bert.state_dict())
    record(context, directory, "teacher", None, {**facts, "weights": sha})


def save_student(
    context: RunContext,
    directory: RunDirectory,
    name: str,
    parent: str | None,
    student: SpikingBert,
    facts: dict[str, Any],
) -> None:
    folder = directory.make_stage(name)
    write_json(folder / FILE, description(student))
    sha = write_weights(folder / WEIGHTS, student.state_dict())
    record(context, directory, name, parent, {**facts, "weights": sha})


def record(context: RunContext, directory: RunDirectory, name: str, parent: str | None, facts: dict[str, Any]) -> None:
    made_from = None if parent is None else {"stage": parent, "weights": directory.record(parent)["weights"]}
    if name != "teacher" and parent is None:
        made_from = {"stage": "teacher", "weights": directory.record("teacher")["weights"]}
    stage = asdict(context.stage(name))
    directory.finish(name, {"stage": name, "parent": made_from, "config": stage, "data": data_facts(context), **facts})


def load_teacher(context: RunContext, directory: RunDirectory) -> Teacher:
    """The finished teacher, frozen."""
    directory.verified("teacher")
    folder = directory.stage("teacher")
    jsonfile.read(folder / "config.json", f"remove {folder} to make the stage again", ("model_type",))
    return Teacher.load(directory.stage("teacher"), classes=context.task.num_labels).freeze()


def load_student(directory: RunDirectory, name: str, config: Config | None = None) -> SpikingBert:
    """The student of a finished stage. `config`: with quantization and sparsity of later stages; they may differ from
    the student's where the stage was taken over from another run and is not quantized yet."""
    folder, state = directory.stage(name), directory.weights(name)
    values, remedy = read_description(folder), f"remove {folder} to make the stage again"
    if config is not None:
        state = adopt(values, state, config)
    student = built(folder / FILE, values, remedy)
    student.to(state["classifier.weight"])  # rounded to another precision it would be another
    fill(student, state, folder / FILE, remedy)
    return student


def adopt(values: dict[str, Any], state: dict[str, torch.Tensor], config: Config) -> dict[str, torch.Tensor]:
    """Set in a student's `values` its quantizer, unless quantization has begun, and whether synapses will be pruned.
    Returns its `state` for these values."""
    values["sparse"] = prunes_synapses(config) or values.get("sparse", False)
    if state.get("strength", 0.0):
        return state
    values["weights"], values["fold"] = weights(config), folds(config)
    state = {key: value for key, value in state.items() if key != "strength"}
    return state if values["weights"] == "float" else {**state, "strength": torch.zeros(())}


def load_compact(directory: RunDirectory) -> SpikingBert:
    """The student that `spikeprune compact` wrote."""
    data = read_verified(directory.compact / WEIGHTS, directory.compact_record()["weights"])
    return restored(directory.compact, safetensors.torch.load(data))
