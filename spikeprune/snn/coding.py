"""Codings: what a non-linear step f (layer norm, attention, gelu) between two spike trains sees at each time step.

A coding is two pure functions, both time first:

    read(pulses, t_steps, leak)   pulses `theta*s[t]` of a source [T_src, ...] -> inputs of f [R, ...]
    drive(y, t_steps, leak)       outputs of f [R, ...]                        -> input currents of the neurons [T, ...]

R is T for the synchronous codings, in which all layers fire at the same time. `accumulate` has no `read`: there f sees
only the source's final ASR, R = 1. The R evaluations of f are independent, so one matrix product computes all of them.
A source with fewer steps than its reader goes silent after its last step, and its mean keeps its last value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from spikeprune.snn.neurons import asr, leak_weights


class Coding(NamedTuple):
    """`read` and `drive` as above. `converges`: as T grows its network comes to the equilibrium `f(clip(x/theta))` of
    `neurons.Equilibrium`; one that does not is trained with the spiking forward."""

    read: Callable[[Tensor, int, float], Tensor] | None
    drive: Callable[[Tensor, int, float], Tensor]
    converges: bool = True

    @property
    def stationary(self) -> bool:
        """Whether f is applied once, to the mean over all steps of its source; layers then fire one after the other."""
        return self.read is None


def extended(seen: Tensor, mean: Callable[[], Tensor], t_steps: int) -> Tensor:
    """Cut `seen [T_src, ...]` to `t_steps`, or extend it with `mean() [...]`."""
    missing = t_steps - len(seen)
    if missing <= 0:
        return seen[:t_steps]
    return torch.cat([seen, mean().expand(missing, *seen.shape[1:])])


def _norms(t_steps: int, leak: float, like: Tensor) -> Tensor:
    """`S_t = sum_{i<=t} leak^(t-i)`, shaped `[T, 1, ...]` to broadcast over `like [T, ...]`."""
    sums = leak_weights(t_steps, leak, like.device).flip(0).cumsum(0)
    return sums.to(like.dtype).view(-1, *[1] * (like.dim() - 1))


def read_step(pulses: Tensor, t_steps: int, leak: float) -> Tensor:
    """`per_step`: the spikes of each step alone."""
    return extended(pulses, lambda: asr(pulses, leak), t_steps)


def drive_step(y: Tensor, t_steps: int, leak: float) -> Tensor:
    """`per_step`: the outputs of f are the currents."""
    return y


def read_running_mean(pulses: Tensor, t_steps: int, leak: float) -> Tensor:
    """`running_mean`: the (leak-weighted) mean of all spikes so far."""
    if leak == 1.0:
        sums = pulses.cumsum(0)
    else:
        sums, total = torch.empty_like(pulses), torch.zeros_like(pulses[0])
        for t, pulse in enumerate(pulses):
            total = leak * total + pulse
            sums[t] = total
    means = sums / _norms(len(pulses), leak, pulses)
    return extended(means, lambda: means[-1], t_steps)


def drive_running_mean(y: Tensor, t_steps: int, leak: float) -> Tensor:
    """`S_t f(x[t]) - leak S_(t-1) f(x[t-1])`, for IF `t f[t] - (t-1) f[t-1]`: the mean current up to t is `f(x[t])`."""
    weighted = _norms(t_steps, leak, y) * y
    return torch.cat([weighted[:1], weighted[1:] - leak * weighted[:-1]])


def drive_constant(y: Tensor, t_steps: int, leak: float) -> Tensor:
    """The same current at every step, `y [1, ...]` (the average IF of Sorbet, arXiv 2409.15298)."""
    return y.expand(t_steps, *y.shape[1:])


CODINGS: dict[str, Coding] = {
    "accumulate": Coding(read=None, drive=drive_constant),
    "running_mean": Coding(read=read_running_mean, drive=drive_running_mean),
    "per_step": Coding(read=read_step, drive=drive_step, converges=False),
}
