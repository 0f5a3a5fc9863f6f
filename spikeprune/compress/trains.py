"""The lengths of a student's spike trains, set for good, with or without what a spike says."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from spikeprune.models.student import Student
from spikeprune.spiking.site import Site


class Trains:
    """Sets a student's time steps, and where thresholds `follow` each theta with them, as the root of its steps.

    Under `accumulate` a train of T steps says one of 2T + 1 values from -theta to theta, theta / T apart. With theta as
    it was, a shorter train loses what is small; with theta / T as it was, what is large. The uniform quantizer of least
    squared error for a Gaussian current lies between (Max 1960, "Quantizing for Minimum Distortion"), for up to five
    steps nearer to the root than to either. In the synchronous codings thresholds stay: a neuron there sees its current
    step by step.

    Weights must stay as they are from the making of this to its last use: each theta is that of the making, times the
    root of what has become of its steps, so that a length set back is exactly as before.
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
                    site.log_theta.copy_(log_theta + math.log(t_steps[place] / self.steps[place]) / 2)
