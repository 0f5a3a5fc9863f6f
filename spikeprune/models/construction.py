"""The modules of a `SpikingBert` from its architecture; plain values go into the modules themselves."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

from spikeprune.models.architecture import Architecture
from spikeprune.models.layers import EncoderLayer, SpikingEmbedding
from spikeprune.models.packing import PackedLinear
from spikeprune.models.relative_bias import RelativeBias
from spikeprune.models.word_table import PackedWordTable, WordTable
from spikeprune.snn.spiking_layer import SpikingLayer


def spiking_layers_of(a: Architecture) -> Callable[..., SpikingLayer]:
    """`(name, channels, groups=1)` -> a spiking layer of this architecture."""
    return partial(SpikingLayer, neuron=a.spikes, leak=a.leak, coding=a.coding, theta=a.theta, dead_zone=a.dead_zone)


def embedding(a: Architecture) -> SpikingEmbedding:
    return SpikingEmbedding(
        vocab=a.vocab,
        positions=a.positions,
        position_offset=a.position_offset,
        segments=a.segments,
        width=a.embedding or a.hidden,
        hidden=a.hidden,
        eps=a.eps,
        feedback=a.feedback,
        residual=a.residual,
        spiking=spiking_layers_of(a),
        table=partial(PackedWordTable if a.packed and a.word_table != "float" else WordTable, weights=a.word_table),
    )


def encoder_layer(a: Architecture, index: int, *, heads: int, ffn: int) -> EncoderLayer:
    """The layer of that index with so many heads and neurons, perhaps none."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Initializing zero-element")
        return EncoderLayer(
            index,
            hidden=a.hidden,
            heads=heads,
            head_size=a.hidden // a.heads,
            ffn=ffn,
            query=a.query,
            eps=a.eps,
            act=a.act,
            residual=a.residual,
            spiking=spiking_layers_of(a),
            linear=partial(PackedLinear, weights=a.weights) if a.packed and a.weights != "float" else nn.Linear,
        )


def relative_bias(a: Architecture, heads: Sequence[int]) -> RelativeBias:
    """Of layers with so many heads each."""
    compacted = a.layer_heads is not None
    return RelativeBias(buckets=a.relative_buckets, heads=a.heads, layer_heads=heads, compacted=compacted)
