"""The arguments of a `SpikingBert`, their known names, and the sizes of a compacted network's layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spikeprune.errors import known
from spikeprune.models.checkpoint_config import ACTIVATIONS
from spikeprune.models.quantization import QUANTIZERS, TABLES, WEIGHTS

RESIDUALS = ("spikes", "membrane")
QUERIES = ("real", "spiking")
POOLINGS = ("mean", "cls")
POOLER_ACTIVATIONS = ("tanh", "gelu")


def unit_counts(layers: int, most: int, counts: Sequence[int] | None) -> list[int]:
    """Heads or neurons of each layer: `counts`, or `most` everywhere. Raises ValueError for counts that do not fit."""
    counts = [most] * layers if counts is None else list(counts)
    if len(counts) != layers or not all(0 <= n <= most for n in counts):
        raise ValueError(f"units must be {layers} numbers from 0 to {most}, got {counts}")
    return counts


def leading_ones(counts: Sequence[int], width: int) -> Tensor:
    """`[L, width]`: row l has `counts[l]` ones, then zeros."""
    return (torch.arange(width) < torch.tensor(counts)[:, None]).to(torch.get_default_dtype())


def check(values: dict[str, Any]) -> None:
    """Raises ValueError for arguments of `SpikingBert` that are unknown or do not fit each other."""
    known("word_table", values["word_table"], ("float", *TABLES))
    packs_weights = values["packed"] and values["word_table"] == "float"
    known("weights", values["weights"], tuple(QUANTIZERS) if packs_weights else WEIGHTS)
    known("residual", values["residual"], RESIDUALS)
    known("query", values["query"], QUERIES)
    known("pooling", values["pooling"], POOLINGS)
    known("act", values["act"], ACTIVATIONS)
    known("pooler_act", values["pooler_act"], POOLER_ACTIVATIONS)
    if not 0 < values["leak"] <= 1:
        raise ValueError(f"leak must be above 0 and at most 1, got {values['leak']}")
    if not 0 <= values["eps"] < math.inf:
        raise ValueError(f"eps must be at least 0 and finite, got {values['eps']}")
    if values["hidden"] % values["heads"]:
        raise ValueError(f"hidden size {values['hidden']} is no multiple of {values['heads']} heads")
    if not 0 <= values["position_offset"] < values["positions"]:
        raise ValueError(f"position_offset {values['position_offset']} leaves none of {values['positions']} positions")
    if values["relative_buckets"] % 4 or values["relative_buckets"] < 0:
        raise ValueError(f"relative_buckets must be a multiple of 4, got {values['relative_buckets']}")
    if values["labels"] is not None and len(values["labels"]) != values["classes"]:
        raise ValueError(f"{values['classes']} classes need as many labels, not {len(values['labels'])}")
    if values["sparse"] and values["weights"] != "float":
        raise ValueError(f"a sparse student's weights are float, not {values['weights']}")
    if values["feedback"] and values["coding"] == "accumulate":
        raise ValueError("feedback needs a synchronous coding: in accumulate the last layer fires after the first")


@dataclass(kw_only=True)
class Architecture:
    """All arguments of `SpikingBert`. D, L, H, F and C are those of the uncompressed architecture. Raises ValueError as
    `check`."""

    vocab: int  # rows of the word, position and segment embeddings
    positions: int
    segments: int  # 0: token types are not read
    hidden: int  # D
    layers: int  # L
    heads: int  # H
    ffn: int  # F
    classes: int  # C
    t_steps: int | Sequence[int]  # time steps: one number, or L+1
    spikes: str = "ternary"  # the neurons, a name in `snn.neurons.ACTIVATIONS`
    leak: float = 1.0  # 1: IF, below 1: LIF
    theta: str = "channel"  # one threshold per channel or per tensor
    coding: str = "accumulate"  # what non-linear steps see of a spike train, a name in `snn.coding.CODINGS`
    query: str = "real"  # or spiking
    pooling: str = "mean"  # or cls
    act: str = "gelu"  # of the feed-forward neurons, the teacher's
    pooler_act: str = "tanh"  # behind the pooler, or gelu
    eps: float = 1e-12  # of the layer norms
    embedding: int | None = None  # width of the embeddings, projected to D where it is another one; None: D
    position_offset: int = 0  # row of the first token's position
    relative_buckets: int = 0  # rows of the relative position bias of the attention scores; 0: none
    weights: str = "float"  # or the quantizer of the encoder's matrices, a name in `quantization.QUANTIZERS`
    fold: bool = False  # thresholds per channel are folded into the matrices that read them before quantization
    word_table: str = "float"  # or the quantizer of the word embeddings, a name in `quantization.TABLES`
    packed: bool = False  # what is quantized is stored as few-bit codes and scales and is final
    feedback: bool = False  # a connection from the last layer to the first (`feedback.py`)
    residual: str = "spikes"  # what the shortcuts carry, spikes or membrane
    dead_zone: bool = False  # currents below a bound count as zero (`snn/dead_zone.py`)
    sparse: bool = False  # a weight of zero in the encoder's matrices is no synapse (`sparsity.py`)
    # Heads and neurons of each layer of a compacted network. The masks keep their shapes, with ones for these and zeros
    # for the missing ones: shares and costs refer to the uncompressed architecture.
    layer_heads: Sequence[int] | None = None
    layer_ffn: Sequence[int] | None = None
    labels: Sequence[str] | None = None  # names of the classes, in order

    def __post_init__(self):
        check(vars(self))
