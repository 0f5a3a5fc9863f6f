"""What a configuration amounts to before anything is read: the stages that act, the student's layers, a key's value."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from functools import reduce
from typing import Any

from spikeprune.config.schema import Config, Stage


def value_of(config: Config, key: str) -> Any:
    return reduce(getattr, key.split("."), config)


def stage_rows(config: Config) -> Iterator[tuple[str, Stage]]:
    for row in fields(config.stages):
        yield row.name, getattr(config.stages, row.name)


def acts(config: Config, name: str) -> bool:
    """Whether a stage does anything: it has epochs, or a mask search, which needs none."""
    stage, spatial = getattr(config.stages, name), config.compress.spatial
    at_once = "spatial" in stage.callbacks and spatial.criterion == "kwon" and spatial.operations is not None
    return stage.epochs > 0 or at_once


def active_stages(config: Config) -> list[str]:
    """The stages that run, in order; the teacher always does, since its metrics come first."""
    return [name for name in config.run.stages if name == "teacher" or acts(config, name)]


def active(config: Config, name: str) -> bool:
    """Whether a stage of this name is listed, known, and does anything."""
    return name in config.run.stages and getattr(config.stages, name, None) is not None and acts(config, name)


def student_layers(config: Config) -> int | None:
    """L where the configuration alone tells it; None where only the teacher's checkpoint does."""
    layers = config.student.layers
    if layers is None:
        return config.teacher.layers if config.teacher.checkpoint is None else None
    return layers if is_int(layers, 1) else len(layers) if is_ints(layers, 0) else None


def is_int(value: Any, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def is_ints(value: Any, low: int) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(is_int(v, low) for v in value)
