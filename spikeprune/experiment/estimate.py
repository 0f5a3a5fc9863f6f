"""Estimates of a whole run: the optimizer steps of each stage, disk, and the time left."""

from __future__ import annotations

import math
from collections.abc import Mapping

from spikeprune.cost.shapes import parameters
from spikeprune.experiment.build.networks import teacher_shape
from spikeprune.experiment.context import RunContext

CORPUS = "general_kd"  # the stage that learns from one
STUDENT_STEP = 2.0  # steps of the teacher, as MiniLM's stages on a GPU


def stage_steps(context: RunContext) -> dict[str, int]:
    """Optimizer steps of each stage that runs, in order. The corpus of `general_kd`, which is not read yet, is taken to
    be as long as the task's."""
    examples = len(context.raw.splits["train"].labels)
    stages = {name: context.stage(name) for name in context.active()}
    return {name: stage.epochs * math.ceil(examples / stage.batch_size) for name, stage in stages.items()}


def bytes_needed(context: RunContext) -> int:
    """Upper bound of what a run writes: each stage's weights, and two resume checkpoints (the older one is removed
    after the newer one is complete), each with weights and Adam's two moments."""
    weights = 4 * parameters(shape=teacher_shape(context)).total
    return weights * (len(context.active()) + 2 * 3) + 5_000_000


def before(context: RunContext) -> str:
    """A line on what the run will take, printed before its first stage."""
    counted = stage_steps(context)
    guess = f", {CORPUS} as if its corpus were as long as the task's data" if CORPUS in counted else ""
    each = ", ".join(f"{name} {count}" for name, count in counted.items() if count)
    disk = bytes_needed(context) / 1e6
    return f"will take {sum(counted.values())} optimizer steps ({each}{guess}) and at most {disk:.0f} MB of disk"


def seconds_left(planned: Mapping[str, int], stage: str, *, done: int, total: int, seconds: float) -> float | None:
    """Until the run's end, at the pace of this stage so far; None before its first step.

    Args:
        planned: optimizer steps of all stages (`stage_steps`), of which those before `stage` are finished.
        done, total: steps of `stage` so far and in all.
        seconds: that `stage` took so far, its validations included.
    """
    left = {**planned, stage: total - done}
    after = list(planned)[list(planned).index(stage) :]
    work = sum(left[name] * effort(name) for name in after)
    return seconds / (done * effort(stage)) * work if done else None


def effort(stage: str) -> float:
    """How long a step of a stage takes, about, in steps of the teacher: a student's also runs the teacher."""
    return 1.0 if stage == "teacher" else STUDENT_STEP


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `2 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
