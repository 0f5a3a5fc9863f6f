"""Time steps until the answer.

In `accumulate` a layer's neurons fire once the train below has ended. Within a layer five populations fire one after
the other: k with v, c, h, f and a'. In the synchronous codings all layers step together.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from spikeprune.cost.operations import CODINGS
from spikeprune.errors import known

POPULATIONS = 5  # of a layer that fire in turn


def latency_steps(t_steps: Sequence[int] | Tensor, coding: str) -> int:
    """Time steps until the answer: Σ T_l in `accumulate`, where a layer waits for the one below, otherwise max T_l."""
    known("coding", coding, CODINGS)
    steps = [int(t) for t in t_steps]
    return sum(steps) if coding == "accumulate" else max(steps)


def latency_stages(t_steps: Sequence[int] | Tensor, coding: str) -> int:
    """Steps of all populations one after the other in `accumulate`, T_0 + 5 Σ T_l; `latency_steps` counts a layer
    once, as the literature does. In the synchronous codings the longest T."""
    known("coding", coding, CODINGS)
    steps = [int(t) for t in t_steps]
    return steps[0] + POPULATIONS * sum(steps[1:]) if coding == "accumulate" else latency_steps(steps, coding)


def latency_overlapped(t_steps: Sequence[int] | Tensor, coding: str) -> int:
    """A lower bound of `latency_stages` where each population starts as soon as the one below has sent its first step.

    Of P = 1 + 5L populations the i-th begins at step i at the earliest, fires for T_i steps, and P - 1 - i others each
    need one more step after its last: no answer before P - 1 + max T = 5L + max T. It is a bound, not a schedule:
    before the train below has ended the sum is not known, so first spikes would have to be corrected.
    """
    known("coding", coding, CODINGS)
    steps = [int(t) for t in t_steps]
    return POPULATIONS * (len(steps) - 1) + max(steps) if coding == "accumulate" else latency_steps(steps, coding)
