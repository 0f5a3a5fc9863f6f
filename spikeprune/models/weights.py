"""What each of the encoder's six matrices computes: stored floats, few-bit weights or packed ones.

A matrix is named by its layer and its name in `quantization.MATRICES`.
"""

from __future__ import annotations

from functools import partial
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from spikeprune.models import quantization
from spikeprune.models.layers import Map, SpikingEmbedding
from spikeprune.models.packing import PackedLinear
from spikeprune.snn.spiking_layer import SpikingLayer


class Encoder(Protocol):
    """The attributes of a network that its matrices depend on; `modeling.SpikingBert` has them."""

    embedding: SpikingEmbedding
    layers: nn.ModuleList  # L times an EncoderLayer
    heads: Tensor  # [L, H], 0 for a pruned head
    ffn: Tensor  # [L, F], 0 for a pruned neuron
    weights: str  # one of quantization.WEIGHTS
    quantized: float  # how far the matrices act quantized, 0 to 1
    fold: bool  # whether thresholds are folded into the matrices before they are quantized


def matrix(student: Encoder, layer: int, name: str) -> nn.Linear | PackedLinear:
    return getattr(student.layers[layer], name)


def matrix_names(student: Encoder) -> list[str]:
    """All of them as `state_dict` names them, without `.weight`."""
    return [f"layers.{i}.{name}" for i in range(len(student.layers)) for name in quantization.MATRICES]


def source(student: Encoder, layer: int, name: str) -> SpikingLayer:
    """The site whose spikes the matrix reads."""
    here, below = (
        student.layers[layer],
        student.layers[layer - 1].output_neurons if layer else student.embedding.neurons,
    )
    sites = {"out": here.context_neurons, "up": here.attention_neurons, "down": here.intermediate_neurons}
    return sites.get(name, below)


def sizes(student: Encoder, layer: int, name: str) -> Tensor | None:
    """`[in]`, as in `quantization.codes_of`; None where every input is kept by the matrix's nature and no theta is
    folded."""
    here, kept = student.layers[layer], None
    if name == "out":
        kept = student.heads[layer, : here.heads].repeat_interleave(here.head_size)
    elif name == "down":
        kept = student.ffn[layer, : here.ffn]
    if not student.fold:
        return kept
    theta = source(student, layer, name).theta.detach().expand(matrix(student, layer, name).in_features)
    return theta if kept is None else theta * kept


def codes(student: Encoder, layer: int, name: str) -> quantization.Codes:
    """Codes `[out, in]` and scale `[out, 1]` of a quantized student's matrix, whatever its strength."""
    linear = matrix(student, layer, name)
    if isinstance(linear, PackedLinear):
        return linear.codes_of()
    return quantization.codes_of(linear.weight, student.weights, sizes(student, layer, name))


def acting_weight(student: Encoder, layer: int, name: str) -> Tensor:
    """`[out, in]`: what the matrix computes with."""
    linear = matrix(student, layer, name)
    if isinstance(linear, PackedLinear):
        return quantization.weight_of(*linear.codes_of(), sizes(student, layer, name))
    if not student.quantized:
        return linear.weight
    return quantization.acting_weight(linear.weight, student.weights, student.quantized, sizes(student, layer, name))


def acting(student: Encoder, layer: int, name: str) -> Map:
    """The matrix as a map, its weight worked out once however often the map is called."""
    linear = matrix(student, layer, name)
    if not student.quantized:
        return linear
    return partial(F.linear, weight=acting_weight(student, layer, name), bias=linear.bias)
