"""Hard-concrete gates (Louizos et al. 2018, arXiv 1712.01312), and the masks that are made of their values.

A gate is z = clip(s (HIGH - LOW) + LOW, 0, 1), s = sigmoid((log u - log(1 - u) + log_alpha) / BETA), u uniform: a
stretched concrete distribution that is exactly 0 or 1 with a probability that log_alpha moves (eqs. 10-12).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from spikeprune.models.modeling import SpikingBert
from spikeprune.pruning.budget import TOLERANCE, CostMeter
from spikeprune.snn.call import shorter

KINDS = ("heads", "ffn", "steps")  # of gated units
BETA, LOW, HIGH = 2 / 3, -0.1, 1.1  # temperature and stretch of the paper
CLOSE = TOLERANCE / 4  # of the goal: each further unit is one more forward of all sentences
SKIPS = 8  # large units that may be passed over so that the masks come nearer to the goal


def sampled(log_alpha: Tensor, noise: Tensor) -> Tensor:
    """Gates in 0..1, of `noise` that is uniform in 0..1."""
    noise = noise.clamp(1e-6, 1 - 1e-6)
    return _stretched((noise.log() - (1 - noise).log() + log_alpha) / BETA)


def open_probability(log_alpha: Tensor) -> Tensor:
    """Of a gate that is not 0 (eq. 12): what its unit is expected to cost, in units of its cost."""
    return torch.sigmoid(log_alpha - BETA * math.log(-LOW / HIGH))


def settled_gate(log_alpha: Tensor) -> Tensor:
    """The gate without noise (eq. 13)."""
    return _stretched(log_alpha)


def _stretched(logits: Tensor) -> Tensor:
    return (torch.sigmoid(logits) * (HIGH - LOW) + LOW).clamp(0, 1)


@torch.no_grad()
def set_masks(student: SpikingBert, units: Tensor) -> None:
    """`units [L H + L F]`: the masks of all heads, then of all neurons."""
    heads, ffn = units.split([student.heads.numel(), student.ffn.numel()])
    student.heads.copy_(heads.view_as(student.heads))
    student.ffn.copy_(ffn.view_as(student.ffn))


def masks_of(student: SpikingBert) -> Tensor:
    return torch.cat([student.heads.flatten(), student.ffn.flatten()])


def floor_of(student: SpikingBert, scores: Tensor, fixed: Tensor, *, min_heads: int, min_ffn: int) -> Tensor:
    """0/1 `[L H + L F]`: the units that stay whatever the goal: `fixed` ones, and in each layer those of the highest
    scores. A unit that may not stay has the score -inf."""
    parts = []
    heads, ffn = scores.split([student.heads.numel(), student.ffn.numel()])
    for kind, least in ((heads.view_as(student.heads), min_heads), (ffn.view_as(student.ffn), min_ffn)):
        order = kind.argsort(dim=1, descending=True, stable=True)[:, :least]
        parts.append((torch.zeros_like(kind).scatter(1, order, 1.0) * (kind > -torch.inf)).flatten())
    return torch.maximum(torch.cat(parts), fixed).to(student.heads.dtype)


def keep_within(student: SpikingBert, scores: Tensor, floor: Tensor, meter: CostMeter, goal: float) -> float:
    """Keep `floor` and as many units of the highest scores as the measured cost allows; returns that cost.

    How long a start of the ranking that is, is found by bisection, which ends within CLOSE of the goal. Where the
    longest one leaves more than TOLERANCE of it, the next unit is a large one: it is passed over, SKIPS times at most.
    """
    ranked = scores.masked_fill(floor > 0, -torch.inf)
    order = ranked.argsort(descending=True, stable=True)[: int((ranked > -torch.inf).sum())].tolist()

    def keep(count: int) -> None:
        units = floor.clone()
        units[order[:count]] = 1
        set_masks(student, units)

    def value(count: int) -> float:
        keep(count)
        return meter.value(student)

    fits, cost, skipped = 0, value(0), 0
    while True:
        over = len(order) + 1
        while over - fits > 1 and cost < goal * (1 - CLOSE):
            middle = (over + fits) // 2
            here = value(middle)
            fits, over, cost = (middle, over, here) if here <= goal else (fits, middle, cost)
        if fits == len(order) or cost >= goal * (1 - TOLERANCE) or skipped == SKIPS:
            keep(fits)
            return cost
        order.pop(fits)
        skipped += 1


def shorten(student: SpikingBert, places: Sequence[int]) -> None:
    """Close the gates of these places in `t_steps` for good."""
    student.set_t_steps([shorter(t) if i in places else t for i, t in enumerate(student.steps)])
