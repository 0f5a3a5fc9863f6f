"""What an energy model reads of a network: its work, the numbers that it holds, and their bits.

Rows [L+2] as in `cost/operations.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spikeprune.cost.dense import neurons, weight_counts
from spikeprune.cost.kinds import Operations
from spikeprune.cost.shapes import Shape, SynapseCounts

FLOAT = 32  # bits of a weight that is not quantized, of a current and of a membrane


@dataclass(frozen=True)
class Network:
    """`weights`, `membranes` and `operands`: numbers held at a time in each row, [L+2] (weights; membranes of spiking
    neurons; keys and values of a sentence, or the queries and attention weights that their spikes select).

    Bits: `weight_bits` of a weight and `activation_bits` of a dense activation of each row, [L+2], `index_bits` of the
    place of a synapse where synapses are listed (0: none are), and `event_bits` of a spike, its neuron's address and
    its sign.
    """

    ops: Operations
    weights: Tensor
    membranes: Tensor
    operands: Tensor
    activation_bits: Tensor
    weight_bits: Tensor
    index_bits: int = 0
    event_bits: int = 0


def spiking_network(
    ops: Operations,
    *,
    shape: Shape,
    heads: Tensor,
    ffn: Tensor,
    coding: str,
    bits: int = FLOAT,
    links: Sequence[SynapseCounts] | None = None,
) -> Network:
    """The student that did the work `ops`. `bits` of its encoder's weights; `links` where synapses are missing.

    In `accumulate` the neurons of one token fire out before the next token's begin, so membranes are those of a token;
    in the synchronous codings those of a sentence.
    """
    heads, ffn = heads.to(ops.ac), ffn.to(ops.ac)
    tokens = ops.tokens / ops.samples
    at_a_time = 1.0 if coding == "accumulate" else tokens
    membranes = neurons(shape=shape, heads=heads, ffn=ffn) * at_a_time
    sums = torch.zeros_like(membranes)
    sums[-1] = shape.hidden  # of pooling
    return Network(
        ops=ops,
        weights=weight_counts(shape=shape, heads=heads, ffn=ffn, links=links),
        membranes=membranes + sums,
        operands=_keys_and_values(tokens, shape=shape, heads=heads),
        activation_bits=torch.full_like(ops.ac, FLOAT),
        weight_bits=_weight_bits(ops, bits),
        index_bits=0 if links is None else _address_bits(shape),
        event_bits=_address_bits(shape) + shape.signed,
    )


def dense_network(
    ops: Operations,
    *,
    shape: Shape,
    heads: Tensor | None = None,
    ffn: Tensor | None = None,
    bits: int = FLOAT,
    activation_bits: Sequence[int] | None = None,
    links: Sequence[SynapseCounts] | None = None,
) -> Network:
    """A dense network that did the work `ops` of `cost.dense.dense`; without masks the whole one. `activation_bits`:
    L+2 numbers; None: floats."""
    heads = ops.ac.new_ones(shape.layers, shape.heads) if heads is None else heads.to(ops.ac)
    ffn = ops.ac.new_ones(shape.layers, shape.ffn) if ffn is None else ffn.to(ops.ac)
    return Network(
        ops=ops,
        weights=weight_counts(shape=shape, heads=heads, ffn=ffn, links=links),
        membranes=torch.zeros_like(ops.ac),
        operands=_keys_and_values(ops.tokens / ops.samples, shape=shape, heads=heads),
        activation_bits=torch.full_like(ops.ac, FLOAT)
        if activation_bits is None
        else ops.ac.new_tensor(activation_bits),
        weight_bits=_weight_bits(ops, bits),
        index_bits=0 if links is None else _address_bits(shape),
    )


def _weight_bits(ops: Operations, bits: int) -> Tensor:
    """`bits` in the encoder layers; embedding (projection, feedback) and head (pooler, classifier) keep floats."""
    rows = torch.full_like(ops.ac, FLOAT)
    rows[1:-1] = bits
    return rows


def _keys_and_values(tokens: Tensor, *, shape: Shape, heads: Tensor) -> Tensor:
    layers = 2 * tokens * heads.sum(1) * shape.head_size
    edge = layers.new_tensor([float(shape.hidden)])  # a token's activations
    return torch.cat([edge, layers, edge])


def _address_bits(shape: Shape) -> int:
    """Of a neuron in the widest layer of them."""
    return math.ceil(math.log2(max(shape.hidden, shape.ffn)))


def level_bits(t_steps: int, *, signed: bool) -> int:
    """Bits of the number of spikes in T steps: ⌈log2(2T + 1)⌉ for ternary spikes, ⌈log2(T + 1)⌉ for binary ones.

    In `accumulate` an IF student is exactly the dense network of activations with so many levels.
    """
    return (2 * t_steps if signed else t_steps).bit_length()
