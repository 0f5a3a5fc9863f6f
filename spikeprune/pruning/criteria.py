"""Criteria: the importance of heads, neurons and time steps. To add one, write one function and add one entry.

Spatial: `Statistics -> (head scores [L, H], neuron scores [L, F])`, the higher are kept. Temporal:
`(TemporalStatistics, total) -> t_steps [L+1]` of that sum or less, none raised, none below 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from spikeprune.pruning.statistics import Statistics, TemporalStatistics

Scores = tuple[Tensor, Tensor]


def magnitude(stats: Statistics) -> Scores:
    """Norms of the weights into and out of the unit. Looks at no data; the baseline of criteria that look at data."""
    return stats.head_weight, stats.ffn_weight


def rate(stats: Statistics) -> Scores:
    """Spiking activity: a unit that rarely fires carries little information, and costs little (see `budget`)."""
    return stats.head_rate, stats.ffn_rate


def fisher(stats: Statistics) -> Scores:
    """Diagonal Fisher information of the mask: the loss expected from removing the unit (Kwon et al. 2022, eq. 8)."""
    return stats.head_fisher, stats.ffn_fisher


def taylor(stats: Statistics) -> Scores:
    """First-order change of the loss as the mask goes from 1 to 0, its size averaged over samples (Molchanov et al.
    2017, arXiv 1611.06440; their squared form of 2019, arXiv 1906.10771, is `fisher` where masks are the gates)."""
    return stats.head_taylor, stats.ffn_taylor


def random(stats: Statistics) -> Scores:
    """Random scores, a baseline. The same ranking at every decision of a run and on every process."""
    generator = torch.Generator().manual_seed(stats.seed)
    heads, ffn = (torch.rand(mask.shape, generator=generator).to(mask) for mask in (stats.heads, stats.ffn))
    return heads, ffn


CRITERIA: dict[str, Callable[[Statistics], Scores]] = {
    "magnitude": magnitude,
    "rate": rate,
    "taylor": taylor,
    "fisher": fisher,
    "random": random,
}


def uniform(stats: TemporalStatistics, total: int) -> list[int]:
    """Remove steps from the longest trains first (the last layer first of equal ones) until their sum is `total`."""
    steps = list(stats.t_steps)
    while sum(steps) > max(total, len(steps)):
        longest = max(range(len(steps)), key=lambda i: (steps[i], i))
        steps[longest] -= 1
    return steps


def convergence(stats: TemporalStatistics, total: int) -> list[int]:
    """The smallest t at which each layer's ASR is within epsilon of its final value, for the smallest epsilon that fits
    `total` steps. `profile[l][t-1]` is the distance after t steps (`statistics.convergence_profile`)."""
    errors = [layer.tolist() for layer in stats.profile]
    settled_from = [worst_from(layer) for layer in errors]
    for epsilon in sorted({error for layer in settled_from for error in layer}):
        steps = [next(t for t, error in enumerate(layer, 1) if error <= epsilon) for layer in settled_from]
        if sum(steps) <= total:
            return steps
    return [1] * len(stats.t_steps)


def worst_from(errors: Sequence[float]) -> list[float]:
    """Largest error from each step on: an ASR that crosses its final value early has not settled there."""
    worst, out = 0.0, []
    for error in reversed(errors):
        worst = max(worst, error)
        out.append(worst)
    return out[::-1]


def sensitivity(stats: TemporalStatistics, total: int) -> list[int]:
    """Repeatedly removes the one step whose removal gives the smallest loss (the first layer's of equal ones).

    Accounts for interactions of steps, at L+1 forwards of all batches for each removed step.
    """
    steps = list(stats.t_steps)
    while sum(steps) > max(total, len(steps)):
        longer = [i for i, t in enumerate(steps) if t > 1]
        candidates = [[t - (i == j) for j, t in enumerate(steps)] for i in longer]
        steps = min(candidates, key=stats.loss_of)
    return steps


TEMPORAL_CRITERIA: dict[str, Callable[[TemporalStatistics, int], list[int]]] = {
    "uniform": uniform,
    "convergence": convergence,
    "sensitivity": sensitivity,
}
