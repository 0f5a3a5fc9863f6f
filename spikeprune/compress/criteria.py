"""What matters. To add a criterion: write one function, add one entry.

Spatial: `Statistics -> (head scores [L, H], neuron scores [L, F])`, the higher are kept. Temporal: `(t_steps, total,
profile) -> t_steps` of that sum or less.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from spikeprune.compress.stats import Statistics

Scores = tuple[Tensor, Tensor]


def magnitude(stats: Statistics) -> Scores:
    """Norms of the weights into and out of the unit. Looks at no data; a lower bound for every other criterion."""
    return stats.head_weight, stats.ffn_weight


def rate(stats: Statistics) -> Scores:
    """Spiking activity: a unit that rarely fires carries little (and costs little: see the joint budget)."""
    return stats.head_rate, stats.ffn_rate


def fisher(stats: Statistics) -> Scores:
    """Diagonal Fisher information of the mask: the loss expected from removing the unit (Kwon et al. 2022, eq. 8)."""
    return stats.head_fisher, stats.ffn_fisher


CRITERIA: dict[str, Callable[[Statistics], Scores]] = {"magnitude": magnitude, "rate": rate, "fisher": fisher}


def uniform(t_steps: Sequence[int], total: int, profile: Sequence[Tensor]) -> list[int]:
    """Take steps from the longest trains first (the last layer first among equals) until their sum is `total`."""
    steps = list(t_steps)
    while sum(steps) > max(total, len(steps)):
        longest = max(range(len(steps)), key=lambda i: (steps[i], i))
        steps[longest] -= 1
    return steps


def convergence(t_steps: Sequence[int], total: int, profile: Sequence[Tensor]) -> list[int]:
    """The smallest t at which each layer's ASR is within epsilon of its final value, for the smallest epsilon that fits
    `total` steps. `profile[l][t-1]` is the distance after t steps (`stats.convergence_profile`)."""
    errors = [layer.tolist() for layer in profile]
    settled_from = [worst_from(layer) for layer in errors]
    for epsilon in sorted({error for layer in settled_from for error in layer}):
        steps = [next(t for t, error in enumerate(layer, 1) if error <= epsilon) for layer in settled_from]
        if sum(steps) <= total:
            return steps
    return [1] * len(t_steps)


def worst_from(errors: Sequence[float]) -> list[float]:
    """Largest error from each step on: an ASR that crosses its final value on the way has not settled there."""
    worst, out = 0.0, []
    for error in reversed(errors):
        worst = max(worst, error)
        out.append(worst)
    return out[::-1]


TEMPORAL_CRITERIA: dict[str, Callable[[Sequence[int], int, Sequence[Tensor]], list[int]]] = {
    "uniform": uniform,
    "convergence": convergence,
}
