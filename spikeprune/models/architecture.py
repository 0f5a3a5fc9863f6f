"""Which arguments make a `SpikingBert`: the known names, and the sizes of a compacted network's layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spikeprune.errors import known
from spikeprune.models.checkpoint_facts import ACTIVATIONS
from spikeprune.models.quantization import QUANTIZERS, WEIGHTS

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
    known("weights", values["weights"], tuple(QUANTIZERS) if values["packed"] else WEIGHTS)
    known("residual", values["residual"], RESIDUALS)
    known("query", values["query"], QUERIES)
    known("pooling", values["pooling"], POOLINGS)
    known("act", values["act"], ACTIVATIONS)
    known("pooler_act", values["pooler_act"], POOLER_ACTIVATIONS)
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
