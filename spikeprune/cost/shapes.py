"""Parameters and bytes of a student or teacher, with pruned heads and neurons taken out.

Legend: D hidden, H heads, d = D/H, F feed-forward neurons, L layers, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from spikeprune.errors import known

BITS = (1, 2, 4, 8, 16, 32)  # of a weight that can be stored


@dataclass(frozen=True)
class Shape:
    """The uncompressed architecture. A BERT teacher is `pooling="cls"`, `query="real"`, `theta="none"`."""

    hidden: int
    heads: int
    ffn: int
    layers: int
    classes: int
    pooling: str = "mean"  # mean: no pooler | cls: dense pooler D×D and tanh
    query: str = "real"  # real | spiking
    vocab_size: int = 30522
    positions: int = 512
    types: int = 2
    embedding: int | None = None  # width of the embeddings, projected to D where it is another one; None: D
    buckets: int = 0  # of a relative position bias, a number for each head
    theta: str = "none"  # spike thresholds stored for each spiking layer: none | tensor | channel
    gain: bool = False  # thresholds follow the token's input
    edges: bool = False  # a dead zone's edge stored for each channel of the spiking layers, no parameter
    membrane: bool = False  # currents go past each block, not spikes
    signed: bool = True  # ternary spikes
    table_bits: int = 32  # of a number in the word embeddings; below 16 each word has a float32 scale
    feedback: bool = False  # the last layer's spikes reach the embedding's spiking layer through a matrix D×D

    def __post_init__(self):
        known("pooling", self.pooling, ("mean", "cls"))
        known("query", self.query, ("real", "spiking"))
        known("theta", self.theta, ("none", "tensor", "channel"))
        if self.hidden % self.heads:
            raise ValueError(f"hidden size {self.hidden} is no multiple of {self.heads} heads")

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads

    @property
    def width(self) -> int:
        """Of the embeddings."""
        return self.embedding or self.hidden

    @property
    def layer_products(self) -> int:
        """Multiplications by the weights of all layers, for a token."""
        return self.layers * self.hidden * (4 * self.hidden + 2 * self.ffn)

    @property
    def projection(self) -> int:
        """Weights between embeddings and layers, where their widths differ."""
        return 0 if self.width == self.hidden else self.width * self.hidden


class SynapseCounts(NamedTuple):
    """The synapses of one layer of a sparse student, counted where they begin; h heads and f neurons are those of the
    layer's own matrices, masked ones too."""

    qkv: Tensor  # [D, h], from each channel below to the queries, keys and values of each head
    out: Tensor  # [h d], from each channel of the context
    up: Tensor  # [D, f], 0 or 1
    down: Tensor  # [f]


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters; `matrices` are the (output, input) shapes of the encoder's weights, part of `encoder`."""

    embeddings: int
    encoder: int
    head: int
    matrices: tuple[tuple[int, int], ...]

    @property
    def total(self) -> int:
        return self.embeddings + self.encoder + self.head


def check_masks(shape: Shape, heads: Tensor, ffn: Tensor) -> None:
    """Raises ValueError unless the masks are [L,H] and [L,F]."""
    found = tuple(heads.shape), tuple(ffn.shape)
    wanted = (shape.layers, shape.heads), (shape.layers, shape.ffn)
    if found != wanted:
        raise ValueError(f"head and neuron masks are {found[0]} and {found[1]}, expected {wanted[0]} and {wanted[1]}")


def _kept(shape: Shape, heads: Tensor | None, ffn: Tensor | None) -> list[tuple[int, int]]:
    """(attention channels, neurons) kept in each layer; no masks: everything."""
    if heads is None or ffn is None:
        return [(shape.hidden, shape.ffn)] * shape.layers
    check_masks(shape, heads, ffn)
    return [(int(h) * shape.head_size, int(f)) for h, f in zip(heads.sum(1).tolist(), ffn.sum(1).tolist(), strict=True)]


def _thetas(shape: Shape, *channels: int) -> int:
    """Thresholds of spiking layers with these many channels left."""
    return {"none": 0, "tensor": sum(left > 0 for left in channels), "channel": sum(channels)}[shape.theta]


def parameters(*, shape: Shape, heads: Tensor | None = None, ffn: Tensor | None = None) -> Parameters:
    """Parameters left once masked heads [L,H] and neurons [L,F] are taken out; without masks, all of them.

    Biases, layer norms and spike thresholds count; masks and `t_steps` do not, since compaction turns them into shapes.
    Raises ValueError for masks of another shape.
    """
    wide = shape.hidden
    encoder, matrices = 0, []
    for channels, neurons in _kept(shape, heads, ffn):
        layer = [(channels, wide)] * 3 + [(wide, channels), (neurons, wide), (wide, neurons)]
        biases = 3 * channels + neurons + 2 * wide
        spiking = [channels] * (4 if shape.query == "spiking" else 3) + [wide, neurons, wide]  # (q,) k, v, c, h, f, a'
        encoder += sum(rows * columns for rows, columns in layer) + biases + 4 * wide + _thetas(shape, *spiking)
        matrices += layer
    head = wide * shape.classes + shape.classes + (wide * wide + wide) * (shape.pooling == "cls")
    embeddings = shape.width * (shape.vocab_size + shape.positions + shape.types + 2) + _thetas(shape, wide)
    embeddings += shape.projection + (wide if shape.projection else 0) + shape.buckets * shape.heads
    embeddings += wide * wide * shape.feedback
    return Parameters(embeddings=embeddings, encoder=encoder, head=head, matrices=tuple(matrices))


def model_bytes(
    *,
    shape: Shape,
    heads: Tensor | None = None,
    ffn: Tensor | None = None,
    bits: int = 32,
    synapses: int | None = None,
) -> int:
    """Bytes on disk with the encoder's weight matrices stored in `bits` each (1.58-bit weights are packed in 2).

    Below 16 bits each output channel keeps a float32 scale. Embeddings, classifier, biases, layer norms, thresholds
    and edges stay float32. `synapses`: how many a sparse student has in all; where it is less so, its matrices are a
    bit for each place and a float32 for each synapse. Raises ValueError for a width that is not stored.
    """
    found = parameters(shape=shape, heads=heads, ffn=ffn)
    plain = found.total - sum(rows * columns for rows, columns in found.matrices)
    # which column of its bias a head of the student has, 2 bytes
    columns = 2 * shape.layers * shape.heads if shape.buckets and shape.theta != "none" else 0
    table = table_bytes(shape) - 4 * shape.vocab_size * shape.width
    edges = 4 * _channels(shape=shape, heads=heads, ffn=ffn) if shape.edges else 0
    return (
        4 * plain
        + table
        + columns
        + edges
        + matrix_bytes(shape=shape, heads=heads, ffn=ffn, bits=bits, synapses=synapses)
    )


def _channels(*, shape: Shape, heads: Tensor | None, ffn: Tensor | None) -> int:
    """Of all spiking layers: as many as there would be thresholds."""
    own, none = (parameters(shape=replace(shape, theta=theta), heads=heads, ffn=ffn) for theta in ("channel", "none"))
    return own.total - none.total


def table_bytes(shape: Shape) -> int:
    """The word embeddings, each word's numbers in whole bytes. Raises ValueError for a width that is not stored."""
    if shape.table_bits not in BITS:
        raise ValueError(f"word embeddings of {shape.table_bits} bits; known: {', '.join(map(str, BITS))}")
    row = -(-shape.width * shape.table_bits // 8)
    return shape.vocab_size * (row + 4 * (shape.table_bits < 16))


def matrix_bytes(
    *,
    shape: Shape,
    heads: Tensor | None = None,
    ffn: Tensor | None = None,
    bits: int = 32,
    synapses: int | None = None,
) -> int:
    """The part of `model_bytes` that `bits` and `synapses` decide: the encoder's weight matrices and their scales."""
    if bits not in BITS:
        raise ValueError(f"encoder weights of {bits} bits; known: {', '.join(map(str, BITS))}")
    matrices = parameters(shape=shape, heads=heads, ffn=ffn).matrices
    scales = sum(rows for rows, columns in matrices if columns) if bits < 16 else 0
    whole = sum(-(-rows * columns * bits // 8) for rows, columns in matrices) + 4 * scales
    if synapses is None:
        return whole
    return min(whole, sum(-(-rows * columns // 8) for rows, columns in matrices) + 4 * synapses)
