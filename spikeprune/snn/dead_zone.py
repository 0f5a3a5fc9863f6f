"""A dead zone before the neuron: currents too small to matter count as zero, so that they cause no spikes.

Training-free activation sparsity by magnitude, with a cut-off read from calibration data (Liu et al. 2024, TEAL, arXiv
2408.14690; Lee et al. 2024, CATS, arXiv 2404.08763), put where a spiking network has its activations: at the current
into a neuron. It is part of f, so equilibrium, simulation and compaction all see the same network.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class DeadZone(nn.Module):
    """Currents of magnitude at most `edge [D]` count as zero; an edge of 0 silences none."""

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("edge", torch.zeros(channels))

    def forward(self, y: Tensor) -> Tensor:
        return y * (y.abs() > self.edge)

    @torch.no_grad()
    def calibrate(self, y: Tensor, tokens: Tensor, percentile: float) -> None:
        """Set the edge so that it silences `percentile` % of each channel's currents `y [..., B, N, D]` on real
        `tokens [B, N]`, rounded down to a whole number of them. It lies half-way to the next larger current, so that
        rounding errors move none across it."""
        if not y.shape[-1]:
            return
        sizes = y[..., tokens, :].abs().flatten(0, -2)  # [M, D]
        k = math.floor(percentile / 100 * len(sizes))
        self.edge.copy_(sizes.sort(0).values[k - 1 : k + 1].mean(0) if k else torch.zeros_like(self.edge))
