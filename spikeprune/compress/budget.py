"""How many: schedules, and masks that keep the highest scores under floors."""

from __future__ import annotations

import torch
from torch import Tensor


def cubic(progress: float, start: float, end: float) -> float:
    """Share kept at `progress` 0..1: fast first, slow at the end (Zhu & Gupta 2017, arXiv 1710.01878)."""
    progress = min(max(progress, 0.0), 1.0)
    return end + (start - end) * (1 - progress) ** 3


def keep_highest(scores: Tensor, alive: Tensor, keep: int, *, floor: int, scope: str) -> Tensor:
    """0/1 mask `[L, K]` of the `keep` highest scores among the `alive` units, at least `floor` in each layer.

    `scope`: `global` ranks over all layers, `layer` gives each layer its equal share. What is pruned stays pruned; a
    layer with fewer than `floor` alive keeps those it has. Ties go to the earlier unit, so the mask is deterministic.
    """
    layers, width = scores.shape
    mask = torch.zeros_like(alive)
    ranked = scores.masked_fill(alive == 0, -torch.inf)
    share = floor if scope == "global" else max(floor, round(keep / layers))
    for row, order in zip(mask, ranked.argsort(dim=1, descending=True, stable=True), strict=True):
        row[order[:share]] = 1
    mask = mask * alive
    if scope == "global":
        left = keep - int(mask.sum())
        rest = ranked.masked_fill(mask > 0, -torch.inf).flatten()
        order = rest.argsort(dim=0, descending=True, stable=True)[: max(left, 0)]
        mask.view(-1)[order[rest[order] > -torch.inf]] = 1
    return mask
