"""The relative position bias of MPNet (Song et al. 2020, arXiv 2004.09297; Raffel et al. 2020, arXiv 1910.10683): a
learnt number for each head and each bucket of distances, added to the attention scores of all layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

FARTHEST = 128  # tokens: from here on all distances share a bucket
ROUNDING = 1e-3  # above that of any device's logarithm: a distance on a bound is in the same bucket everywhere


@dataclass(frozen=True)
class AttentionBias:
    """What is added to the attention scores of one layer."""

    scores: Tensor  # [H, N, N]
    padding: Tensor  # [B, 1, 1, N], see `ForwardContext.padding`

    @cached_property
    def padded(self) -> Tensor:
        """`[B, H, N, N]`; layers with the same heads share it."""
        return self.scores + self.padding


class RelativeBias(nn.Module):
    """`table [buckets, H]`, one for all layers. `columns [L, H]`: the table's column for each head of a layer, since a
    compacted layer has other heads first."""

    def __init__(self, *, buckets: int, heads: int, layer_heads: Sequence[int], compacted: bool):
        super().__init__()
        self.layer_heads, self.compacted = list(layer_heads), compacted
        self.table = nn.Embedding(buckets, heads)
        columns = torch.arange(heads, dtype=torch.int16).repeat(len(self.layer_heads), 1)
        self.register_buffer("columns", columns)

    def forward(self, padding: Tensor) -> list[AttentionBias]:
        """The bias of each layer, `[H, N, N]` for its own heads; `padding [B, 1, 1, N]`."""
        scores = self.scores(padding.shape[-1])
        if not self.compacted:
            return [AttentionBias(scores, padding)] * len(self.layer_heads)
        own = [columns[:n].long() for columns, n in zip(self.columns, self.layer_heads, strict=True)]
        return [AttentionBias(scores[heads], padding) for heads in own]

    def scores(self, n: int) -> Tensor:
        """Of all heads, `[H, N, N]`: row i, column j for the query at i and the key at j."""
        at = torch.arange(n, device=self.table.weight.device)
        distances = torch.arange(1 - n, n, device=at.device)  # [2N-1], of the key from the query
        values = self.table(bucket(distances, self.table.num_embeddings)).T  # [H, 2N-1]
        return values[:, at[None, :] - at[:, None] + n - 1]


def bucket(distances: Tensor, buckets: int) -> Tensor:
    """The bucket of each distance of a key from the query, long. Keys behind the query have the upper half of the
    buckets; of each half, the lower one is a distance each, and the upper ones grow by equal factors up to FARTHEST."""
    half, size = buckets // 2, distances.abs()
    exact = half // 2
    grown = (size.clamp(min=1) / exact).log() * ((half - exact) / math.log(FARTHEST / exact))
    grown = exact + (grown + ROUNDING).floor().long()
    return torch.where(size < exact, size, grown.clamp(max=half - 1)) + (distances > 0) * half
