"""A spiking BERT from a dense one: the dense weights, and thresholds that one batch calibrates."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel

from spikeprune.errors import InputError
from spikeprune.models.families import architecture
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.outputs import inputs_of
from spikeprune.models.teacher import Teacher, copy_encoder


@torch.no_grad()
def from_bert(
    bert: PreTrainedModel,
    batch: Mapping[str, Tensor],
    *,
    t_steps: int = 4,
    spikes: str = "ternary",
    coding: str = "accumulate",
    pooling: str = "mean",
) -> SpikingBert:
    """A `SpikingBert` with the embeddings and encoder layers of `bert`, a sequence classifier of one of `FAMILIES`, in
    training mode; with `pooling="cls"` also its head, else a new classifier. The thresholds are set from the currents
    on `batch`.

    t_steps  time steps of each layer; spikes: one of `NEURONS`; coding: one of `CODINGS`; pooling: mean or cls

    Raises ValueError for an unknown name, InputError for what is no such classifier and for a batch without inputs.
    Example: `from_bert(BertForSequenceClassification.from_pretrained(…), batch)`
    """
    if not isinstance(bert, PreTrainedModel):
        kind = type(bert).__name__
        raise InputError(f"a {kind} is no model: load it by AutoModelForSequenceClassification.from_pretrained")
    config = bert.config
    if bert.base_model is bert:
        raise InputError(f"{type(bert).__name__} has no classifier: give a model for sequence classification")
    student = SpikingBert(
        **architecture(config),
        layers=config.num_hidden_layers,
        classes=config.num_labels,
        t_steps=t_steps,
        spikes=spikes,
        coding=coding,
        pooling=pooling,
    )
    copy_encoder(student, Teacher(bert), list(range(config.num_hidden_layers)))
    student.to(next(bert.parameters())).eval()
    student(**inputs_of(batch), mode="calibrate")
    return student.train()
