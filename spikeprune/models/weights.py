"""The effective weights of the encoder's six matrices per layer, whether stored as floats, quantized in training or
packed.

A matrix is given by its layer's number and its name in `quantization.MATRICES`.
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
    """The spiking layer whose spikes the matrix multiplies."""
    here = student.layers[layer]
    below = student.layers[layer - 1].output_neurons if layer else student.embedding.neurons
    inside = {"out": here.context_neurons, "up": here.attention_neurons, "down": here.intermediate_neurons}
    return inside.get(name, below)


def sizes(student: Encoder, layer: int, name: str) -> Tensor | None:
    """The sizes `[in]` of the inputs' spikes for `quantization.codes_of`: 0 for a pruned input, else theta if it is
    folded, or 1. None for a matrix whose inputs cannot be pruned, without folding."""
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
    """Codes `[out, in]` and scale `[out, 1]` of a matrix under the network's quantizer, at full strength."""
    linear = matrix(student, layer, name)
    if isinstance(linear, PackedLinear):
        return linear.codes_of()
    return quantization.codes_of(linear.weight, student.weights, sizes(student, layer, name))


def acting_weight(student: Encoder, layer: int, name: str) -> Tensor:
    """The effective weight `[out, in]`: moved towards its quantized value by the network's strength."""
    linear = matrix(student, layer, name)
    if isinstance(linear, PackedLinear):
        return quantization.weight_of(*linear.codes_of(), sizes(student, layer, name))
    if not student.quantized:
        return linear.weight
    return quantization.acting_weight(linear.weight, student.weights, student.quantized, sizes(student, layer, name))


def acting(student: Encoder, layer: int, name: str) -> Map:
    """The matrix as a function, whose effective weight is computed once for all of its calls."""
    linear = matrix(student, layer, name)
    if not student.quantized:
        return linear
    return partial(F.linear, weight=acting_weight(student, layer, name), bias=linear.bias)
