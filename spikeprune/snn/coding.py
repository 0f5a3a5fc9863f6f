"""Codings: what a non-linear step f (layer norm, attention, gelu) between two spike trains sees at each time step.

Two pure functions make a coding, both time first:

    read(pulses, t_steps, leak)   pulses `theta*s[t]` of a source [T_src, ...] -> what f sees [R, ...]
    drive(y, t_steps, leak)       f's answers [R, ...]                        -> input currents of the neuron [T, ...]

R is T for the synchronous codings. `accumulate` has no `read`: there f sees the source's final ASR alone, R = 1. All R
evaluations of f are independent of each other, so they go through one matrix product. A source with fewer steps than
its reader goes silent, and its mean is held.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from spikeprune.snn.neurons import asr


class Coding(NamedTuple):
    read: Callable[[Tensor, int, float], Tensor] | None
    drive: Callable[[Tensor, int, float], Tensor]

    @property
    def stationary(self) -> bool:
        """Whether f is applied once, to the mean over the source's whole run; sites then fire one after the other."""
        return self.read is None


def hold(seen: Tensor, mean: Callable[[], Tensor], t_steps: int) -> Tensor:
    """Cut `seen [T_src, ...]` to `t_steps`, or lengthen it with the held `mean() [...]`."""
    missing = t_steps - len(seen)
    if missing <= 0:
        return seen[:t_steps]
    return torch.cat([seen, mean().expand(missing, *seen.shape[1:])])


def _norms(t_steps: int, leak: float, like: Tensor) -> Tensor:
    """`S_t = sum_{i<=t} leak^(t-i)`, shaped `[T, 1, ...]` to broadcast over `like [T, ...]`."""
    sums = [float(sum(leak**i for i in range(t))) for t in range(1, t_steps + 1)]
    return torch.tensor(sums, dtype=like.dtype, device=like.device).view(-1, *[1] * (like.dim() - 1))


def read_step(pulses: Tensor, t_steps: int, leak: float) -> Tensor:
    """This step's spikes only."""
    return hold(pulses, lambda: asr(pulses, leak), t_steps)


def drive_step(y: Tensor, t_steps: int, leak: float) -> Tensor:
    return y


def read_running_mean(pulses: Tensor, t_steps: int, leak: float) -> Tensor:
    """The (leak-weighted) mean of all spikes so far."""
    if leak == 1.0:
        sums = pulses.cumsum(0)
    else:
        sums, total = torch.empty_like(pulses), torch.zeros_like(pulses[0])
        for t, pulse in enumerate(pulses):
            total = leak * total + pulse
            sums[t] = total
    means = sums / _norms(len(pulses), leak, pulses)
    return hold(means, lambda: means[-1], t_steps)


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
    "per_step": Coding(read=read_step, drive=drive_step),
}
