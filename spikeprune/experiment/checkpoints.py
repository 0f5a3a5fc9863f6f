"""Checkpoints of finished stages in the run directory, written and loaded."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from spikeprune.config.derived import folds, prunes_synapses, weights, word_table
from spikeprune.config.schema import Config
from spikeprune.errors import InputError
from spikeprune.experiment.context import RunContext
from spikeprune.experiment.run_directory import WEIGHTS, RunDirectory, sums, verified_weights, write_weights
from spikeprune.experiment.summary import data_facts
from spikeprune.files import jsonfile
from spikeprune.files.atomic import write_json
from spikeprune.models.checkpoint_config import label_names
from spikeprune.models.families import FAMILIES
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.other_architectures import CLASSIFIERS
from spikeprune.models.sequence_classification import SpikingBertForSequenceClassification
from spikeprune.models.serialization import (
    CONFIG,
    config_json,
    config_of,
    file_tensors,
    full_state,
    network,
    read_config,
)
from spikeprune.models.teacher import Teacher

STRENGTHS = {"weights": "strength", "word_table": "embedding.word.strength"}  # by the argument with the quantizer


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
    parent: str,
    student: SpikingBert,
    facts: dict[str, Any],
) -> None:
    sha = write_student(directory.make_stage(name), student, file_tensors(student), context.tokenizer)
    record(context, directory, name, parent, {**facts, "weights": sha})


def write_student(folder: Path, student: SpikingBert, tensors: dict[str, Tensor], tokenizer: Any) -> str:
    """A directory that transformers loads: configuration, `tensors` (`file_tensors(student)`) and tokenizer. Returns
    the sha256 of the weights' file."""
    tokenizer.save_pretrained(folder)
    write_json(folder / CONFIG, config_json(config_of(student)))
    return write_weights(folder / WEIGHTS, tensors)


def record(context: RunContext, directory: RunDirectory, name: str, parent: str | None, facts: dict[str, Any]) -> None:
    """Write the stage's record; `parent`: the stage whose weights it started from, of the teacher None."""
    made_from = None if parent is None else {"stage": parent, "weights": directory.record(parent)["weights"]}
    stage = asdict(context.stage(name))
    kept = {"stage": name, "parent": made_from, "config": stage, "data": data_facts(context)}
    directory.finish(name, {**kept, **facts, "files": sums(directory.stage(name))})


def load_teacher(context: RunContext, directory: RunDirectory) -> Teacher:
    """The finished teacher, frozen."""
    directory.verified("teacher")
    folder = directory.stage("teacher")
    jsonfile.read(folder / "config.json", f"remove {folder} to make the stage again", ("model_type",))
    return Teacher.load(directory.stage("teacher"), classes=context.task.num_labels).freeze()


def load_student(directory: RunDirectory, name: str, config: Config | None = None) -> SpikingBert:
    """The student of a finished stage. `config`: with quantization and sparsity of later stages; they may differ from
    the student's where the stage was taken over from another run and is not quantized yet."""
    folder, tensors = directory.stage(name), directory.weights(name)
    remedy = f"remove {folder} to make the stage again"
    values = read_config(folder, remedy).model_values()
    state = full_state(values, tensors, str(folder), remedy)
    if config is not None:
        state = with_later_compression(values, state, config)
    return network(values, state)


def with_later_compression(values: dict[str, Any], state: dict[str, Tensor], config: Config) -> dict[str, Tensor]:
    """Set in a student's `values` the quantizer of `config`, unless quantization has begun, and whether synapses will
    be pruned. Returns its `state` for these values."""
    values["sparse"] = prunes_synapses(config) or values["sparse"]
    if any(state.get(key, 0.0) for key in STRENGTHS.values()):
        return state
    values["weights"], values["fold"], values["word_table"] = weights(config), folds(config), word_table(config)
    state = {key: value for key, value in state.items() if key not in STRENGTHS.values()}
    return state | {key: torch.zeros(()) for name, key in STRENGTHS.items() if values[name] != "float"}


def load_compact(directory: RunDirectory) -> SpikingBert:
    """The student that `spikeprune compact` left, in evaluation mode."""
    folder, remedy = directory.compact, "`spikeprune compact` makes it again"
    tensors = safetensors.torch.load(verified_weights(folder, directory.compact_record()))
    values = read_config(folder, remedy).model_values()
    return network(values, full_state(values, tensors, str(folder), remedy)).eval()


def load(path: str | Path) -> PreTrainedModel:
    """The model in a directory, in evaluation mode: of a run (its last finished stage), of one stage, of a run's
    `compact/`, or one that `save_pretrained` wrote. A teacher's directory gives transformers' own classifier.

    Raises InputError where there is no model, and for weights that are not those in the stage's record.

    Example: `spikeprune.load("runs/sst2-tiny")(**tokenizer("a fine film", return_tensors="pt")).logits`
    """
    folder = model_folder(path)
    remedy = f"remove {folder} to make it again"
    if (folder / "record.json").is_file():
        verified_weights(folder, jsonfile.read_sealed(folder / "record.json", remedy, ("weights",)))
    if jsonfile.read(folder / CONFIG, remedy, ("model_type",))["model_type"] in [*FAMILIES, *CLASSIFIERS]:
        return AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=False).eval()
    return SpikingBertForSequenceClassification.from_pretrained(folder, config=read_config(folder, remedy))


def model_folder(path: str | Path) -> Path:
    """The directory itself, or that of a run's last finished stage. Raises InputError where there is no model."""
    folder = Path(path)
    if (folder / "config.yaml").is_file():
        directory = RunDirectory.open(folder)
        folder = directory.stage(directory.last_student())
    if not (folder / CONFIG).is_file():
        raise InputError(f"{path}: holds no model ({CONFIG} is missing); give a run, a stage's directory or a model's")
    return folder
