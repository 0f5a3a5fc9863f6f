"""What the engine reads of a student: weights as limbs, thresholds and masks of each site, kept from pass to pass and
worked out again where a tensor behind them has changed."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.optim.optimizer import register_optimizer_step_post_hook

from spikeprune.kernels import split_integer
from spikeprune.kernels.split_integer import MOST, SplitIntegers, padded
from spikeprune.models.quantization import MATRICES
from spikeprune.models.weights import acting_weight, matrix
from spikeprune.snn.spiking_layer import SpikingLayer

if TYPE_CHECKING:
    from spikeprune.models.layers import EncoderLayer
    from spikeprune.models.modeling import SpikingBert


@dataclass
class Layer:
    """What the kernels read of an encoder layer; the tensors are refreshed in place, so that a CUDA graph may hold
    them."""

    qkv: SplitIntegers
    out: SplitIntegers
    up: SplitIntegers
    down: SplitIntegers
    # of each site, theta and which channels fire
    kv: tuple[Tensor, Tensor]  # behind the query's columns, which do not: theta 1, mask 0
    context: tuple[Tensor, Tensor]
    attention: tuple[Tensor, Tensor]
    intermediate: tuple[Tensor, Tensor]
    output: tuple[Tensor, Tensor]


@dataclass
class CachedWeights:
    """What the kernels read of a student."""

    version: tuple[tuple, tuple]
    serial: int  # another where tensors have been replaced
    embedding: tuple[Tensor, Tensor]
    layers: list[Layer]


_SERIAL = itertools.count()
_HELD: WeakKeyDictionary[SpikingBert, dict[bool, CachedWeights]] = WeakKeyDictionary()
_STEPS = [0]  # of all optimizers: a fused one changes parameters without a new `_version`


def stepped(*_) -> None:
    _STEPS[0] += 1


register_optimizer_step_post_hook(stepped)


def version(student: SpikingBert) -> tuple[tuple, tuple]:
    """Changes whenever a tensor that `prepare` reads has changed: the second part where it is a mask."""
    tensors = [*student.parameters()]
    tensors += [b for layer in student.layers for name in MATRICES for b in matrix_buffers(layer, name)]
    masks = (student.heads, student.ffn)
    own, of_masks = ([(t.data_ptr(), t._version) for t in part] for part in (tensors, masks))
    return (student.quantized, *_STEPS, *own), tuple(of_masks)


def matrix_buffers(layer: EncoderLayer, name: str) -> list[Tensor]:
    return list(getattr(layer, name).buffers())


def held(student: SpikingBert, counts: bool) -> CachedWeights:
    """Weights and thresholds as the kernels read them, worked out again where anything has changed. `counts`: trains
    hold counts up to MOST, not single spikes."""
    # they outlive it, and are written again elsewhere; leaving it would allow gradients, whose history no training step
    # can be captured beside
    with torch.inference_mode(False), torch.no_grad():
        return _held(student, counts)


def _held(student: SpikingBert, counts: bool) -> CachedWeights:
    own, now = _HELD.setdefault(student, {}), version(student)
    if counts not in own:
        own[counts] = prepare(student, counts, now)
    elif own[counts].version != now:
        # a mask moves no float weight: a search, which moves hardly anything else, need not split the weights again
        kept = own[counts] if own[counts].version[0] == now[0] and not student.quantized else None
        refresh(own[counts], prepare(student, counts, now, kept))
    return own[counts]


def stamps(student: SpikingBert) -> tuple:
    """Which tensors the engine holds of this student, after an update of each."""
    return tuple(held(student, counts).serial for counts in _HELD.get(student, ()))


def refresh(old: CachedWeights, new: CachedWeights) -> None:
    """Into the tensors that are there, unless shapes or devices are others."""
    olds, news = ([x.embedding, *(part for layer in x.layers for part in vars(layer).values())] for x in (old, new))
    same = [(a, b) for x, y in zip(olds, news, strict=True) for a, b in zip(x, y, strict=True)]
    if all(a.shape == b.shape and a.device == b.device for a, b in same):
        for a, b in same:
            if a is not b:
                a.copy_(b)
    else:
        old.embedding, old.layers, old.serial = new.embedding, new.layers, new.serial
    old.version = new.version


def prepare(student: SpikingBert, counts: bool, now: tuple, kept: CachedWeights | None = None) -> CachedWeights:
    """`kept`: what was held under other masks, whose weights are the same."""
    most, source, made = MOST if counts else 1, student.embedding.neurons, []
    for i, layer in enumerate(student.layers):

        def part(name: str, theta: Tensor, i: int = i) -> SplitIntegers:
            return split_integer.split(acting_weight(student, i, name) * theta, matrix(student, i, name).bias, most)

        heads, ffn = student.heads[i, : layer.heads], student.ffn[i, : layer.ffn]
        alive = heads.repeat_interleave(layer.head_size)
        key, value = wide(layer.key_neurons), wide(layer.value_neurons)
        if kept is None:
            weights = {
                "qkv": split_integer.joined([part(name, source.theta) for name in ("query", "key", "value")]),
                "out": part("out", layer.context_neurons.theta),
                "up": part("up", layer.attention_neurons.theta),
                "down": part("down", layer.intermediate_neurons.theta),
            }
        else:
            weights = {name: getattr(kept.layers[i], name) for name in ("qkv", "out", "up", "down")}
        made.append(
            Layer(
                **weights,
                kv=tuple(torch.cat([fill, k, v]) for fill, k, v in zip(nothing(key[0]), key, value, strict=True)),
                context=wide(layer.context_neurons, alive),
                attention=wide(layer.attention_neurons),
                intermediate=wide(layer.intermediate_neurons, ffn),
                output=wide(layer.output_neurons),
            )
        )
        source = layer.output_neurons
    return CachedWeights(now, next(_SERIAL), wide(student.embedding.neurons), made)


def nothing(like: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ones_like(like), torch.zeros_like(like)


def wide(site: SpikingLayer, kept: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Theta of each channel, 1 beyond the last; and which of them fire."""
    theta = site.theta.expand(site.channels).contiguous()
    kept = torch.ones_like(theta) if kept is None else kept.to(theta)
    beyond = padded(len(theta)) - len(theta)
    return pad(theta, (0, beyond), value=1.0), pad(kept, (0, beyond))
