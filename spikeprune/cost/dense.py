"""Work of dense networks: the teacher, whole or under a student's masks, and a student computed without spikes.

Legend and rows as in `cost/operations.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spikeprune.cost.kinds import KINDS, Operations
from spikeprune.cost.operations import attention_products, embedded, product
from spikeprune.cost.shapes import Shape, SynapseCounts, check_masks
from spikeprune.cost.synapses import readers


def dense(
    lengths: Tensor,
    *,
    shape: Shape,
    heads: Tensor | None = None,
    ffn: Tensor | None = None,
    links: Sequence[SynapseCounts] | None = None,
    rounded: bool = False,
) -> Operations:
    """Work of the dense BERT of this shape on sentences of `lengths` [B], padding left out.

    MAC of a sentence: L(4nD² + 2n²D + 2nDF) + D·C, and D² more where there is a pooler (`pooling="cls"`), and nED where
    embeddings of another width E are projected. Agrees with `torch.utils.flop_counter` (which counts a MAC as two).

    With masks `heads` [L,H] and `ffn` [L,F] kept units alone count, with `links` the synapses between them. `rounded`:
    each activation in the place of a spiking neuron is rounded once to a few levels, one of `updates`.
    """
    n = lengths.double()
    heads = n.new_ones(shape.layers, shape.heads) if heads is None else heads.to(n)
    ffn = n.new_ones(shape.layers, shape.ffn) if ffn is None else ffn.to(n)
    check_masks(shape, heads, ffn)
    tokens, zero = n.sum(), n.new_zeros(())
    layers = [
        _encoder_layer(n, shape=shape, heads=heads[i], ffn=ffn[i], links=None if links is None else links[i])
        for i in range(shape.layers)
    ]
    rows = [embedded(tokens, shape=shape), *layers, _head(n, shape=shape)]
    kinds = {kind: torch.stack([row.get(kind, zero) for row in rows]) for kind in KINDS}
    if rounded:
        kinds["updates"] = tokens * neurons(shape=shape, heads=heads, ffn=ffn)
    return Operations(kinds, ac_per_step=n.new_zeros(shape.layers + 2, 1), tokens=tokens, samples=len(n))


def _encoder_layer(
    n: Tensor, *, shape: Shape, heads: Tensor, ffn: Tensor, links: SynapseCounts | None
) -> dict[str, Tensor]:
    tokens, pairs, wide = n.sum(), n.square().sum(), shape.hidden
    channels, neurons = heads.sum() * shape.head_size, ffn.sum()
    synapses = tokens * sum(matrix_synapses(shape=shape, heads=heads, ffn=ffn, links=links))
    attention = attention_products(tokens, pairs, heads=heads.sum(), shape=shape)
    return {
        **attention,
        "mac": synapses + attention["mac"],
        "dense_weights": synapses,
        "inputs": attention["inputs"] + tokens * (3 * wide + channels + wide + neurons),  # q, k, v; out; up; down
        "outputs": attention["outputs"] + tokens * (3 * channels + wide + neurons + wide),
        "norm": 2 * wide * tokens,
        "softmax": heads.sum() * pairs,
        "activation": neurons * tokens,
    }


def _head(n: Tensor, *, shape: Shape) -> dict[str, Tensor]:
    samples = n.new_tensor(float(len(n)))
    work = product(samples, shape.hidden, shape.classes)
    if shape.pooling == "cls":
        pooler = product(samples, shape.hidden, shape.hidden)
        work = {kind: value + pooler[kind] for kind, value in work.items()}
        work["activation"] = samples * shape.hidden
    return work


def matrix_synapses(
    *, shape: Shape, heads: Tensor, ffn: Tensor, links: SynapseCounts | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Synapses between kept units of one layer, in q, k and v together, out, up and down; masks [H] and [F]."""
    channels, every = heads.repeat_interleave(shape.head_size), heads.new_ones(shape.hidden)
    qkv, out, up, down = readers(shape=shape, heads=heads, ffn=ffn, links=links)
    if links is not None:  # a compacted layer's own units come first
        channels, ffn = channels[: len(out)], ffn[: len(down)]
    return (every * qkv).sum(), (channels * out).sum(), (every * up).sum(), (ffn * down).sum()


def weight_counts(*, shape: Shape, heads: Tensor, ffn: Tensor, links: Sequence[SynapseCounts] | None = None) -> Tensor:
    """Weights in the matrices of each row, [L+2]; tables of the embedding are looked up, not counted."""
    layers = [
        sum(matrix_synapses(shape=shape, heads=heads[i], ffn=ffn[i], links=None if links is None else links[i]))
        for i in range(shape.layers)
    ]
    wide = shape.hidden
    head = wide * shape.classes + wide * wide * (shape.pooling == "cls")
    first = wide * wide * shape.feedback + shape.projection
    return torch.stack([heads.new_tensor(float(first)), *layers, heads.new_tensor(float(head))])


def neurons(*, shape: Shape, heads: Tensor, ffn: Tensor) -> Tensor:
    """Spiking neurons of a token in each row, [L+2]: (q,) k, v, c, h, f and a' of a layer, without pruned ones."""
    channels = heads.sum(1) * shape.head_size
    layers = channels * (3 + (shape.query == "spiking")) + 2 * shape.hidden + ffn.sum(1)
    return torch.cat([layers.new_tensor([float(shape.hidden)]), layers, layers.new_zeros(1)])
