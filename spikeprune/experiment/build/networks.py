"""The networks before they have learnt anything, and the shapes that their cost is counted with."""

from __future__ import annotations

from typing import Any

import torch

from spikeprune.config.derived import folds, prunes_synapses, weights
from spikeprune.cost.shapes import Shape
from spikeprune.experiment.context import RunContext
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.outputs import INPUTS
from spikeprune.models.teacher import Teacher, copy_encoder
from spikeprune.models.variants import deaden
from spikeprune.snn.neurons import NEURONS


def teacher(parts: RunContext) -> Teacher:
    """The teacher before it has learnt the task."""
    checkpoint, dropout = parts.config.teacher.checkpoint, parts.config.teacher.dropout
    if checkpoint:
        return Teacher.load(checkpoint, classes=parts.task.num_labels, labels=parts.task.labels, dropout=dropout)
    return Teacher.scratch(parts.teacher_config)


def student_values(parts: RunContext) -> dict[str, Any]:
    """What the configuration and the teacher make of a new student; from then on its own `values` count."""
    s, bert = parts.config.student, parts.teacher_config
    return {
        "vocab": bert.vocab_size,
        "positions": bert.max_position_embeddings,
        "segments": bert.type_vocab_size,
        "hidden": bert.hidden_size,
        "layers": len(parts.layers),
        "heads": bert.num_attention_heads,
        "ffn": bert.intermediate_size,
        "classes": parts.task.num_labels,
        "labels": parts.task.labels,
        "t_steps": s.t_steps,
        "spikes": s.spikes,
        "leak": s.leak,
        "theta": s.theta,
        "coding": s.coding,
        "query": s.query,
        "pooling": s.pooling,
        "act": bert.hidden_act,
        "eps": bert.layer_norm_eps,
        "weights": weights(parts.config),
        "feedback": s.feedback,
        "residual": s.residual,
        "dead_zone": bool(s.dead_zone),
        "fold": folds(parts.config),
        "sparse": prunes_synapses(parts.config),
    }


def student(parts: RunContext, frozen: Teacher, calibration: dict[str, torch.Tensor]) -> SpikingBert:
    """The student before it has learnt anything: the teacher's weights or random ones, thetas set from one batch."""
    made = SpikingBert(**student_values(parts))
    if parts.config.student.init == "teacher":
        copy_encoder(made, frozen, parts.layers)
    made.eval()
    with torch.no_grad():
        made(*(calibration[name] for name in INPUTS), mode="calibrate")
    if parts.config.student.dead_zone:
        deaden(made, calibration, parts.config.student.dead_zone)
    return made.train()


def student_shape(parts: RunContext) -> Shape:
    s = parts.config.student
    options = {"gain": NEURONS[s.spikes].gain is not None, "feedback": s.feedback}
    options["membrane"] = s.residual == "membrane"
    return Shape(pooling=s.pooling, query=s.query, theta=s.theta, **options, **_sizes(parts, len(parts.layers)))


def teacher_shape(parts: RunContext) -> Shape:
    return Shape(pooling="cls", query="real", theta="none", **_sizes(parts, parts.teacher_config.num_hidden_layers))


def _sizes(parts: RunContext, layers: int) -> dict[str, Any]:
    bert = parts.teacher_config
    return {
        "hidden": bert.hidden_size,
        "heads": bert.num_attention_heads,
        "ffn": bert.intermediate_size,
        "layers": layers,
        "classes": parts.task.num_labels,
        "vocab_size": bert.vocab_size,
        "positions": bert.max_position_embeddings,
        "types": bert.type_vocab_size,
    }
