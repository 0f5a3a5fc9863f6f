"""Teacher and student before any training, and the teacher's shape."""

from __future__ import annotations

from typing import Any

import torch

from spikeprune.config.derived import folds, prunes_synapses, weights, word_table
from spikeprune.cost.shapes import Shape
from spikeprune.experiment.context import RunContext
from spikeprune.models.families import architecture
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.outputs import inputs_of
from spikeprune.models.shape import sizes
from spikeprune.models.teacher import Teacher, copy_encoder
from spikeprune.models.variants import calibrate_dead_zones


def teacher(context: RunContext) -> Teacher:
    """The teacher before it has learnt the task."""
    checkpoint, dropout = context.config.teacher.checkpoint, context.config.teacher.dropout
    if checkpoint:
        return Teacher.load(checkpoint, classes=context.task.num_labels, labels=context.task.labels, dropout=dropout)
    return Teacher.scratch(context.teacher_config)


def student_values(context: RunContext) -> dict[str, Any]:
    """What the configuration and the teacher make of a new student; from then on its own `values` count."""
    chosen = ("t_steps", "spikes", "leak", "theta", "coding", "query", "pooling", "feedback", "residual")
    return {
        **architecture(context.teacher_config),
        **{name: getattr(context.config.student, name) for name in chosen},
        "layers": len(context.layers),
        "classes": context.task.num_labels,
        "labels": context.task.labels,
        "weights": weights(context.config),
        "dead_zone": bool(context.config.student.dead_zone),
        "fold": folds(context.config),
        "word_table": word_table(context.config),
        "sparse": prunes_synapses(context.config),
    }


def student(context: RunContext, frozen: Teacher, calibration: dict[str, torch.Tensor]) -> SpikingBert:
    """The student before any training: the teacher's weights, and thresholds calibrated on one batch."""
    made = SpikingBert(**student_values(context))
    copy_encoder(made, frozen, context.layers)
    made.eval()
    with torch.no_grad():
        made(**inputs_of(calibration), mode="calibrate")
    if context.config.student.dead_zone:
        calibrate_dead_zones(made, calibration, context.config.student.dead_zone)
    return made.train()


def teacher_shape(context: RunContext) -> Shape:
    """The sizes that the teacher's cost is counted with."""
    return dense_shape(context.teacher_config, context.task.num_labels)


def dense_shape(config: Any, classes: int) -> Shape:
    """As `teacher_shape`, of a transformers configuration."""
    values = {**architecture(config), "layers": config.num_hidden_layers, "classes": classes}
    return Shape(**sizes(values), pooling="cls")
