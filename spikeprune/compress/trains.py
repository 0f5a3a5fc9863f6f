"""The lengths of a student's spike trains, set for good, with or without what a spike says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch

from spikeprune.models.student import Student
from spikeprune.spiking.site import Site


class Trains:
    """Sets a student's time steps, and where thresholds `follow` each theta with them, by its `width`.

    Under `accumulate` a train of T steps says one of 2T + 1 values from -theta to theta, theta / T apart. With theta as
    it was, a shorter train loses what is small; with theta / T as it was, what is large. In the synchronous codings
    thresholds stay: a neuron there sees its current step by step.

    Weights must stay as they are from the making of this to its last use: each theta is that of the making, times what
    the widths of its lengths then and now are apart, so that a length set back is exactly as before.
    """

    def __init__(self, student: Student, *, follow: bool = False):
        self.student, self.steps = student, list(student.steps)
        places = (student.embedding, *student.layers) if follow and student.coding == "accumulate" else ()
        self.thetas = [[(m, m.log_theta.detach().clone()) for m in p.modules() if isinstance(m, Site)] for p in places]

    @torch.no_grad()
    def set(self, t_steps: Sequence[int]) -> None:
        """`[L+1]` lengths, the embedding's first. Raises ValueError as `Student.set_t_steps`."""
        before = self.student.steps
        if list(t_steps) == before:  # a copy, even of the same, makes what is derived from weights be made anew
            return
        self.student.set_t_steps(t_steps)
        for place, sites in enumerate(self.thetas):
            if t_steps[place] != before[place]:
                for site, log_theta in sites:
                    site.log_theta.copy_(log_theta + math.log(width(t_steps[place]) / width(self.steps[place])))


WIDEST = 2.33  # standard deviations; where thetas begin, 99 % of a Gaussian's sizes, is 2.58


def width(t_steps: int) -> float:
    """Theta's size for a train of `t_steps`: the `loading`, but the same from six steps on. By trial, not derived: a
    student whose thetas began at a percentile of its currents may have learnt to do without what is wider."""
    return min(loading(t_steps), WIDEST)


@lru_cache
def loading(t_steps: int) -> float:
    """The theta, in standard deviations, with which a train says a Gaussian current with the least squared error.

    2T + 1 levels `spacing` apart, the nearest one taken, the outermost at theta: Max 1960, "Quantizing for Minimum
    Distortion", table II. The error is least where `spacing` is the slope that fits the currents to their own levels
    best (`settled`); that fit, repeated, ends there (Lloyd's method).
    """
    level = torch.arange(1, t_steps + 1, dtype=torch.float64)
    spacing, settled = 1.0, False
    while not settled:
        low = (level - 0.5) * spacing
        high = torch.cat([low[1:], low.new_tensor([torch.inf])])
        mass = torch.special.ndtr(high) - torch.special.ndtr(low)  # of the currents that a level speaks for
        moment = (torch.exp(-(low**2) / 2) - torch.exp(-(high**2) / 2)) / math.sqrt(2 * math.pi)
        fitted = ((level * moment).sum() / (level**2 * mass).sum()).item()
        settled, spacing = abs(fitted - spacing) < 1e-9 * spacing, fitted
    return t_steps * spacing


def lasting(t_steps: int) -> float:
    """Of how far answers move when a train of `t_steps` loses one step, the share that is lost for good.

    Currents that were rounded to theta / T are rounded to theta / (T - 1). The two grids have little in common, so an
    answer loses the old errors and takes on new ones, of mean square 1/T² and 1/(T-1)² (a uniform rounding error's, in
    units of theta²/12): it moves by their sum, and is worse by their difference. That training makes up for the rest is
    assumed, not measured; and the grid is that of `accumulate`: in the synchronous codings a rate is k / T only about.
    """
    before, after = 1 / t_steps**2, 1 / (t_steps - 1) ** 2
    return (after - before) / (after + before)
