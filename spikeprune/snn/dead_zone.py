"""A dead zone before the neuron: currents too small to matter are none, so that they draw no spikes.

Training-free activation sparsity by magnitude, with a cut-off read from calibration data (Liu et al. 2024, TEAL, arXiv
2408.14690; Lee et al. 2024, CATS, arXiv 2404.08763), put where a spiking network has its activations: at the current
into a neuron. It is part of f, so equilibrium, simulation and compaction all see the same network.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from spikeprune.snn.context import ForwardContext


class DeadZone(nn.Module):
    """Currents of at most `edge [D]` count as zero; 0 silences nothing."""

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("edge", torch.zeros(channels))

    def forward(self, y: Tensor) -> Tensor:
        return y * (y.abs() > self.edge)

    def after(self, f: Callable[..., Tensor], run: ForwardContext) -> Callable[..., Tensor]:
        """`f`, and then the dead zone."""
        return lambda *inputs: self.measured(f(*inputs), run)

    def measured(self, y: Tensor, run: ForwardContext) -> Tensor:
        """`forward`, with the edge first put where `run` asks for it."""
        if run.deaden is not None:
            self.calibrate(y, run.tokens, run.deaden)
        return self(y)

    @torch.no_grad()
    def calibrate(self, y: Tensor, tokens: Tensor, percentile: float) -> None:
        """Put the edge where it silences `percentile` % of each channel's currents `[..., B, N, D]` on real tokens,
        rounded down to a whole number of them. It lies half-way to the next larger one, so that rounding errors move
        nothing across it."""
        if not y.shape[-1]:
            return
        sizes = y[..., tokens, :].abs().flatten(0, -2)  # [M, D]
        k = math.floor(percentile / 100 * len(sizes))
        self.edge.copy_(sizes.sort(0).values[k - 1 : k + 1].mean(0) if k else torch.zeros_like(self.edge))


def among(x: Tensor, alive: Tensor | None) -> Tensor:
    """The channels of `x [..., D]` that are `alive [D]`; all of them where none is, or nobody says which."""
    return x if alive is None or not alive.any() else x[..., alive > 0]
