"""Matrices that quantizers are tried on; not a test."""

from __future__ import annotations

import torch


def matrix(rows=5, columns=37, seed=0, dtype=torch.float32) -> torch.Tensor:
    """Rows of very different sizes, the last one zero."""
    w = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    w *= torch.logspace(-3, 2, rows, dtype=dtype)[:, None]
    w[-1] = 0
    return w


def linear(w: torch.Tensor) -> torch.nn.Linear:
    made = torch.nn.Linear(w.shape[1], w.shape[0]).to(w.dtype)
    with torch.no_grad():
        made.weight.copy_(w)
    return made
