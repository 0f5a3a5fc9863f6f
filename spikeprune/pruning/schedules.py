"""Schedules of the share that is kept, and masks that keep the highest scores under floors."""

from __future__ import annotations

import torch
from torch import Tensor

from spikeprune.errors import known

SCOPES = ("global", "layer")


def cubic(progress: float, end: float) -> float:
    """Share kept at `progress` 0..1, from 1 to `end`: fast first, slow at the end (Zhu & Gupta 2017, arXiv
    1710.01878)."""
    progress = min(max(progress, 0.0), 1.0)
    return end + (1 - end) * (1 - progress) ** 3


def keep_highest(scores: Tensor, alive: Tensor, keep: int, *, floor: int, scope: str) -> Tensor:
    """0/1 mask `[L, K]` of the `keep` highest scores among the `alive` units, at least `floor` in each layer.

    `scope`: `global` ranks over all layers; `layer` gives each layer its equal share, and what does not divide to those
    whose next unit scores highest. What is pruned stays pruned; a layer with fewer than `floor` alive keeps those it
    has. Ties go to the earlier unit, so the mask is deterministic.
    """
    known("scope", scope, SCOPES)
    layers = len(scores)
    mask = torch.zeros_like(alive)
    ranked = scores.masked_fill(alive == 0, -torch.inf)
    orders = ranked.argsort(dim=1, descending=True, stable=True)
    share = floor if scope == "global" else max(floor, keep // layers)
    mask = mask.scatter(1, orders[:, :share], 1.0) * alive
    rest, left = ranked.masked_fill(mask > 0, -torch.inf), keep - int(mask.sum())
    if scope == "layer":  # each layer's next unit alone may take what did not divide
        left = keep - share * layers
        rest = torch.full_like(rest, -torch.inf).scatter(1, orders[:, share : share + 1], 0.0) + rest
    rest = rest.flatten()
    order = rest.argsort(dim=0, descending=True, stable=True)[: max(left, 0)]
    mask.view(-1)[order[rest[order] > -torch.inf]] = 1
    return mask
