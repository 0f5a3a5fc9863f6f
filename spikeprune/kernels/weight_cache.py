"""The weight cache of the fused encoder: a student's matrices as split integers, thresholds and masks of its spiking
layers. It is kept from forward to forward, and computed again where a tensor that it was made from has changed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.optim.optimizer import register_optimizer_step_post_hook

from spikeprune.kernels import split_integer
from spikeprune.kernels.split_integer import MOST, SplitIntegers, padded
from spikeprune.models.layers import EncoderLayer
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.quantization import MATRICES
from spikeprune.models.weights import acting_weight, matrix, source
from spikeprune.snn.spiking_layer import SpikingLayer


@dataclass
class LayerWeights:
    """What the kernels read of an encoder layer."""

    qkv: SplitIntegers
    out: SplitIntegers
    up: SplitIntegers
    down: SplitIntegers
    # theta of each padded channel of a spiking layer, and 1 where the channel fires, else 0
    kv: tuple[Tensor, Tensor]  # keys and values, behind the query's columns, which do not fire: theta 1, mask 0
    context: tuple[Tensor, Tensor]
    attention: tuple[Tensor, Tensor]
    intermediate: tuple[Tensor, Tensor]
    output: tuple[Tensor, Tensor]


@dataclass
class CachedWeights:
    """What the kernels read of a student. `version`: see `version_of`."""

    version: tuple[tuple, tuple]
    embedding: tuple[Tensor, Tensor]
    layers: list[LayerWeights]


_CACHE: WeakKeyDictionary[SpikingBert, dict[bool, CachedWeights]] = WeakKeyDictionary()


class OptimizerSteps:
    """A counter that torch calls after each step of any optimizer."""

    def __init__(self):
        self.count = 0

    def __call__(self, *_) -> None:
        self.count += 1


@cache
def optimizer_steps() -> OptimizerSteps:
    """Steps that optimizers have taken since the first call: a fused optimizer changes parameters without a new
    `_version`, and torch offers no narrower hook."""
    steps = OptimizerSteps()
    register_optimizer_step_post_hook(steps)
    return steps


def version_of(student: SpikingBert) -> tuple[tuple, tuple]:
    """Changes whenever a tensor that `prepare` reads has changed: its second part for a mask, its first for others."""
    buffers = [b for layer in student.layers for name in MATRICES for b in getattr(layer, name).buffers()]
    weights, masks = (
        tuple((tensor.data_ptr(), tensor._version) for tensor in tensors)
        for tensors in ((*student.parameters(), *buffers), (student.heads, student.ffn))
    )
    return (student.quantized, optimizer_steps().count, *weights), masks


def cached_weights(student: SpikingBert, counts: bool) -> CachedWeights:
    """A student's weights and thresholds as the kernels read them, up to date. `counts`: spike trains hold counts up to
    MOST, not single spikes."""
    # the tensors outlive the forward, perhaps one in inference mode; and without `no_grad` they would have a history,
    # beside which no training step can be captured
    with torch.inference_mode(False), torch.no_grad():
        own, version = _CACHE.setdefault(student, {}), version_of(student)
        old = own.get(counts)
        if old is None or old.version != version:
            # a mask changes no float weight, so a mask search need not split the weights again
            same_weights = old is not None and old.version[0] == version[0] and not student.quantized
            own[counts] = prepare(student, counts, version, old if same_weights else None)
        return own[counts]


def prepare(
    student: SpikingBert, counts: bool, version: tuple[tuple, tuple], same: CachedWeights | None = None
) -> CachedWeights:
    """The cache of a student at this `version`. `same`: an earlier one, whose matrices are still right."""
    layers = []
    for i, layer in enumerate(student.layers):
        heads, ffn = student.heads[i, : layer.heads], student.ffn[i, : layer.ffn]
        qkv, out, up, down = split_matrices(student, i, counts) if same is None else matrices_of(same.layers[i])
        layers.append(
            LayerWeights(
                qkv=qkv,
                out=out,
                up=up,
                down=down,
                kv=key_value_neurons(layer),
                context=padded_neurons(layer.context_neurons, heads.repeat_interleave(layer.head_size)),
                attention=padded_neurons(layer.attention_neurons),
                intermediate=padded_neurons(layer.intermediate_neurons, ffn),
                output=padded_neurons(layer.output_neurons),
            )
        )
    return CachedWeights(version, padded_neurons(student.embedding.neurons), layers)


def matrices_of(layer: LayerWeights) -> tuple[SplitIntegers, ...]:
    return layer.qkv, layer.out, layer.up, layer.down


def split_matrices(student: SpikingBert, index: int, counts: bool) -> tuple[SplitIntegers, ...]:
    """As `matrices_of`: each matrix of a layer with the theta of the neurons that it reads folded in."""

    def split(name: str) -> SplitIntegers:
        weight = acting_weight(student, index, name) * source(student, index, name).theta
        return split_integer.split(weight, matrix(student, index, name).bias, MOST if counts else 1)

    qkv = split_integer.concatenated([split(name) for name in ("query", "key", "value")])
    return qkv, split("out"), split("up"), split("down")


def key_value_neurons(layer: EncoderLayer) -> tuple[Tensor, Tensor]:
    """Theta and mask of the columns query, key and value, of which the query's do not fire."""
    (key, key_kept), (value, value_kept) = padded_neurons(layer.key_neurons), padded_neurons(layer.value_neurons)
    return torch.cat([torch.ones_like(key), key, value]), torch.cat([torch.zeros_like(key), key_kept, value_kept])


def padded_neurons(neurons: SpikingLayer, kept: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Theta of each channel, 1 on padding, and which channels fire, all of them unless `kept [channels]` masks some."""
    theta = neurons.theta.expand(neurons.channels).contiguous()
    kept = torch.ones_like(theta) if kept is None else kept.to(theta)
    beyond = padded(len(theta)) - len(theta)
    return pad(theta, (0, beyond), value=1.0), pad(kept, (0, beyond))
