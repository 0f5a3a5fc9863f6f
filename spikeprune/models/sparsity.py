"""Which synapses a sparse student has. A weight of exactly zero is none: no spike is sent over it.

Legend: D hidden, h heads of a layer and f of its neurons (of its own matrices, masked ones too), d = D/H.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from spikeprune.cost.shapes import SynapseCounts
from spikeprune.models.quantization import MATRICES
from spikeprune.models.weights import Encoder, matrix, source


class SparseEncoder(Encoder, Protocol):
    """An encoder that may be sparse."""

    synapses: Synapses | None


class Synapses(nn.Module):
    """The synapses of a student's encoder, as 0/1 masks of its matrices and counted by their source. Worked out from
    the weights (`refresh_masks`), so part of no checkpoint; written in place, so that a CUDA graph may hold them."""

    def __init__(self, student: Encoder):
        super().__init__()
        self.missing = False  # whether any is
        for i, name, weight in weights_of(student):
            self.register_buffer(f"mask_{i}_{name}", torch.ones_like(weight), persistent=False)
        for i, layer in enumerate(student.layers):
            inner, width = layer.out.in_features, layer.up.in_features
            sizes = {"qkv": (width, layer.heads), "out": (inner,), "up": (width, layer.ffn), "down": (layer.ffn,)}
            for name, size in sizes.items():
                self.register_buffer(f"{name}_{i}", torch.zeros(size), persistent=False)

    def mask(self, layer: int, name: str) -> Tensor:
        """`[out, in]`."""
        return getattr(self, f"mask_{layer}_{name}")

    def links(self, layer: int) -> SynapseCounts:
        return SynapseCounts(*(getattr(self, f"{name}_{layer}") for name in SynapseCounts._fields))

    @torch.no_grad()
    def refresh_masks(self, student: Encoder) -> None:
        """Take the synapses from the weights as they are now."""
        for i, name, weight in weights_of(student):
            self.mask(i, name).copy_(weight != 0)
        for i, layer in enumerate(student.layers):
            links, size = self.links(i), (layer.heads, layer.head_size, layer.query.in_features)
            links.qkv.copy_(sum(self.mask(i, name).view(size).sum(1) for name in ("query", "key", "value")).T)
            links.out.copy_(self.mask(i, "out").sum(0))
            links.up.copy_(self.mask(i, "up").T)
            links.down.copy_(self.mask(i, "down").sum(0))
        self.missing = not all(self.mask(i, name).all() for i, name, _ in weights_of(student))

    @torch.no_grad()
    def apply_masks(self, student: Encoder) -> None:
        """Zero again where there is no synapse, after an optimizer step."""
        if not self.missing:
            return
        found = [(weight, self.mask(i, name)) for i, name, weight in weights_of(student)]
        torch._foreach_mul_(*map(list, zip(*found, strict=True)))


def weights_of(student: Encoder) -> Iterator[tuple[int, str, Tensor]]:
    return ((i, name, matrix(student, i, name).weight) for i in range(len(student.layers)) for name in MATRICES)


def allowed_mask(student: Encoder, layer: int, name: str) -> Tensor:
    """`[out, in]`, 1 where a synapse would join kept units."""
    here, linear = student.layers[layer], matrix(student, layer, name)
    heads = student.heads[layer, : here.heads].repeat_interleave(here.head_size)
    ffn, every = student.ffn[layer, : here.ffn], linear.weight.new_ones(1)
    rows = {"query": heads, "key": heads, "value": heads, "up": ffn}.get(name, every).to(every)
    columns = {"out": heads, "down": ffn}.get(name, every).to(every)
    return (rows[:, None] * columns).expand(linear.weight.shape)


def saliency(student: Encoder, layer: int, name: str) -> Tensor:
    """`[out, in]`: the size of what a spike adds over each synapse, |w| theta of the neuron that it comes from."""
    linear = matrix(student, layer, name)
    return linear.weight.detach().abs() * source(student, layer, name).theta.detach().expand(linear.in_features)


def share(student: SparseEncoder) -> float:
    """Of the synapses that kept units could have, how many there are; 1 in a student that is not sparse."""
    kept, possible = (1, 1) if student.synapses is None else counted(student)
    return kept / max(possible, 1)


def counted(student: SparseEncoder) -> tuple[int, int]:
    """The synapses between kept units of a sparse student: those that there are, and those that there could be."""
    kept = [(student.synapses.mask(i, name), allowed_mask(student, i, name)) for i, name, _ in weights_of(student)]
    found = torch.stack([torch.stack([(mask * allowed).sum(), allowed.sum()]) for mask, allowed in kept])
    there, possible = found.double().sum(0).tolist()
    return int(there), int(possible)
