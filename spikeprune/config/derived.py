"""What a configuration amounts to before anything is read: the stages that run, the student's layers and weights."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import fields, replace
from functools import reduce
from itertools import takewhile
from pathlib import Path
from typing import Any

from spikeprune.config.schema import Compression, Config, Losses, Stage, Stages
from spikeprune.config.tasks import CUSTOM
from spikeprune.errors import Problem

# Stages that remove something between epochs.
COMPRESSION = tuple(field.name for field in fields(Stages) if isinstance(field.default_factory(), Compression))


def value_of(config: Config, key: str) -> Any:
    return reduce(getattr, key.split("."), config)


def wrong(config: Config, key: str, text: str, *others: str) -> Problem:
    """`key = value: text`, to be blamed on `key`, or else on the `others` that it does not go together with."""
    value = value_of(config, key)
    return (key, *others), f"{key} = {str(value).lower() if isinstance(value, bool) else value}: {text}"


def stage_rows(config: Config) -> Iterable[tuple[str, Stage]]:
    return vars(config.stages).items()


def runs(config: Config, name: str) -> bool:
    """Whether a stage does anything: it has epochs, or is Kwon's mask search, which needs none."""
    spatial = config.stages.spatial
    at_once = name == "spatial" and spatial.criterion == "kwon" and spatial.operations is not None
    return getattr(config.stages, name).epochs > 0 or at_once


def active_stages(config: Config) -> list[str]:
    """The stages that run, in order; the teacher always does, since its metrics come first."""
    return [name for name, _ in stage_rows(config) if name == "teacher" or runs(config, name)]


def without_features(config: Config) -> Config:
    """For a teacher that teaches logits alone: the losses `hidden` and `scores` are 0, and a stage that learns nothing
    else of its teacher has the loss `soft`."""
    stages = {name: replace(stage, losses=_logits_alone(stage.losses)) for name, stage in stage_rows(config)}
    return replace(config, stages=replace(config.stages, **stages))


def _logits_alone(losses: Losses) -> Losses:
    features = losses.hidden or losses.scores
    soft = 1.0 if features and not (losses.soft or losses.hard) else losses.soft
    return replace(losses, hidden=0.0, scores=0.0, soft=soft)


def compresses(config: Config, name: str) -> bool:
    """Whether a stage removes anything: one of COMPRESSION, and fine-tuning under a budget, which keeps to it."""
    return name in COMPRESSION or (name == "finetune" and runs(config, "budget"))


def last_uncompressed(config: Config) -> str | None:
    """The last stage of the student before the first that removes anything; None where that comes first."""
    before = list(takewhile(lambda name: not compresses(config, name), active_stages(config)[1:]))
    return before[-1] if before else None


def weights(config: Config) -> str:
    """What the encoder's weights are quantized to in the end."""
    return config.stages.quantize.weights if runs(config, "quantize") else "float"


def word_table(config: Config) -> str:
    """What the word embeddings are quantized to in the end."""
    return config.stages.quantize.embeddings if runs(config, "quantize") else "float"


def folds(config: Config) -> bool:
    """Whether thresholds are folded into the weights before they are quantized."""
    return config.stages.quantize.fold and weights(config) != "float"


def prunes_synapses(config: Config) -> bool:
    return runs(config, "spatial") and config.stages.spatial.synapses < 1


def least_neurons(ffn: int) -> int:
    """Feed-forward neurons that every layer keeps: eight, of narrow layers an eighth."""
    return max(1, min(8, ffn // 8))


def scratch_size(config: Config) -> dict[str, int]:
    """Sizes of a teacher from random weights, by their names; empty while they are not valid."""
    size, names = config.teacher.size, ("hidden", "layers", "heads", "ffn", "vocab")
    return dict(zip(names, size, strict=True)) if len(size) == len(names) and min(size) >= 1 else {}


def student_layers(config: Config, total: int | None = None) -> int | None:
    """L on a teacher of `total` layers; None where that is not given and only the teacher's checkpoint tells."""
    layers = config.student.layers
    if layers is None and total is None and config.teacher.checkpoint is None:
        return scratch_size(config).get("layers")
    if layers is None:
        return total
    return layers if is_int(layers, 1) else len(layers) if is_ints(layers, 0) else None


def data_name(config: Config) -> str:
    """The task, of a user's own data their name: what directories are called after."""
    data = config.data
    return own_name(data.train_file, data.hub) if config.task == CUSTOM else config.task


def own_name(train_file: str | None, hub: str) -> str:
    """Of a user's own data, for their run: the training file's name, its folder's where that says no more than `train`,
    or the hub data set's."""
    file = Path(train_file or hub)
    name = file.parent.absolute().name if train_file and file.stem.lower() == "train" else file.stem
    return re.sub(r"[^\w.-]+", "-", name) or "custom"


def is_int(value: Any, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def is_ints(value: Any, low: int) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(is_int(v, low) for v in value)
