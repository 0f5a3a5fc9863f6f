"""Triton kernels of the spiking sites. The torch reference of each is named beside it and stays the default.

| kernel | reference | launches on CUDA, kernel / reference |
|---|---|---|
| `fused_equilibrium` forward | `neurons.settle`, `Equilibrium.forward` | 1 / about 10 |
| the same with mask and rates | and what `SpikingLayer.fire` does with these | 2 / about 16 |
| `fused_equilibrium` backward | `Equilibrium.backward` | 2 / about 11 |
| the same with mask and rates | and theirs | 2 / about 20 |

Covered: binary and ternary IF neurons (leak 1) in float32 on CUDA. Not covered, so always torch: LIF, float64, the CPU,
and a neuron whose closed form is not written here.

Rounding. The forward is bit-equal to the reference on the same device: the same operations in the same order, IEEE
division, and no product contracted with the sum after it (`t * r + 1/2` rounded once instead of twice could cross a
spike). So is the gradient to x, but for what comes from the rates. Rates and the gradient to theta sum the same terms
in another order; that order is fixed (no atomics), so a run repeats itself bit for bit.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spikeprune.snn.neurons import NEURONS

KINDS = ("binary", "ternary")
TILE = {"ROWS": 16, "COLS": 128}  # of one program
LAUNCH = {"num_warps": 4, "enable_fp_fusion": False}  # False: no fused multiply-add, see Rounding
INSTALLED = find_spec("triton") is not None  # torch for the CPU comes without it

if INSTALLED:
    import triton
    import triton.language as tl

    @triton.jit
    def tile(rows, columns, ROWS: tl.constexpr, COLS: tl.constexpr):
        """Offsets into `[rows, columns]` and which of them exist, `[ROWS, COLS]`; this program's columns, `[COLS]`."""
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        column = tl.program_id(1) * COLS + tl.arange(0, COLS)
        exists = (row < rows)[:, None] & (column < columns)[None, :]
        return row.to(tl.int64)[:, None] * columns + column[None, :], exists, column

    @triton.jit
    def rate(r, t, inverse, TERNARY: tl.constexpr, DIVIDES: tl.constexpr):
        """`neurons.binary_settled` or `ternary_settled` of `r = x/theta`, over `t`. NaN stays NaN, as in torch."""
        n = t * r
        if TERNARY:
            sign = (n > 0).to(tl.float32) - (n < 0).to(tl.float32)
            n = sign * tl.minimum(tl.floor(tl.abs(n) + 0.5), t, propagate_nan=tl.PropagateNan.ALL)
        else:
            n = tl.clamp(tl.floor(n + 0.5), 0.0, t, propagate_nan=tl.PropagateNan.ALL)
        if DIVIDES:
            a = tl.div_rn(n, t)
        else:
            a = n * inverse
        return a

    @triton.jit(do_not_specialize=["rows"])
    def equilibrium_forward(
        x, theta, mask, shares, out, partial, rows, columns, t, inverse,
        MASKED: tl.constexpr, RATED: tl.constexpr,
        TERNARY: tl.constexpr, PER_CHANNEL: tl.constexpr, DIVIDES: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    ):  # fmt: skip
        """`out = theta * rate(x / theta)`, all `[rows, columns]`; theta `[columns]`, or `[1]` if not PER_CHANNEL.
        MASKED: times `mask [columns]`. RATED: `partial [tiles, columns]` of |out| / theta weighted by `shares [rows]`,
        summed over this tile's rows."""
        at, exists, column = tile(rows, columns, ROWS, COLS)
        size = tl.load(theta + column * PER_CHANNEL, mask=column < columns, other=1.0)[None, :]
        r = tl.div_rn(tl.load(x + at, mask=exists, other=0.0), size)
        a = rate(r, t, inverse, TERNARY, DIVIDES)
        value = size * a
        if MASKED:
            kept = tl.load(mask + column, mask=column < columns, other=0.0)[None, :]
            value = value * kept
            a = a * kept
        tl.store(out + at, value, mask=exists)
        if RATED:
            row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
            share = tl.load(shares + row, mask=row < rows, other=0.0)[:, None]
            fired = tl.sum(tl.abs(a) * share, axis=0)
            tl.store(partial + tl.program_id(0) * columns + column, fired, mask=column < columns)

    @triton.jit(do_not_specialize=["rows"])
    def equilibrium_backward(
        grad, grad_rate, x, theta, mask, shares, grad_x, partial, rows, columns, t, inverse, low,
        MASKED: tl.constexpr, RATED: tl.constexpr,
        TERNARY: tl.constexpr, PER_CHANNEL: tl.constexpr, DIVIDES: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    ):  # fmt: skip
        """Gradient to x `[rows, columns]`, and to theta summed over this tile's rows, `partial [tiles, columns]`.

        A rate is |out| / theta: of the gradient to theta only what moves x / theta is left of it."""
        at, exists, column = tile(rows, columns, ROWS, COLS)
        size = tl.load(theta + column * PER_CHANNEL, mask=column < columns, other=1.0)[None, :]
        r = tl.div_rn(tl.load(x + at, mask=exists, other=0.0), size)
        a = rate(r, t, inverse, TERNARY, DIVIDES)
        g = tl.load(grad + at, mask=exists, other=0.0)  # 0 beyond the edge, so that the sum may run over the tile
        inside = ((r > low) & (r < 1)).to(tl.float32)
        if MASKED:
            kept = tl.load(mask + column, mask=column < columns, other=0.0)[None, :]
            g = g * kept
        terms = g * (a - r * inside)
        if RATED:
            row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
            share = tl.load(shares + row, mask=row < rows, other=0.0)[:, None]
            slope = tl.load(grad_rate + column, mask=column < columns, other=0.0)[None, :]
            more = slope / size * share * ((a > 0).to(tl.float32) - (a < 0).to(tl.float32))
            if MASKED:
                more = more * kept
            terms -= more * r * inside
            g += more
        tl.store(grad_x + at, g * inside, mask=exists)
        tl.store(partial + tl.program_id(0) * columns + column, tl.sum(terms, axis=0), mask=column < columns)


def lacking() -> str:
    """What this machine would need to run the kernels; empty where it can."""
    if not torch.cuda.is_available():
        return "a CUDA device"
    return "" if INSTALLED else "the package triton"


def available() -> bool:
    """Whether this machine can run the kernels: a CUDA device, and Triton installed."""
    return not lacking()


def covers(x: Tensor, kind: str, leak: float) -> bool:
    """Whether `fused_equilibrium` computes this site's reference."""
    return kind in KINDS and leak == 1.0 and x.is_cuda and x.dtype == torch.float32 and x.numel() > 0


@cache
def divides(device: torch.device) -> bool:
    """Whether torch divides a tensor by a number exactly there. On CUDA it has long multiplied by the reciprocal, up to
    one ulp off (pytorch issue 191495), and `rate` must do what this release does; 169/13 tells the two apart."""
    return (torch.tensor(169.0, device=device) / 13).item() == 13.0


def _arguments(x: Tensor, theta: Tensor, t_steps: int, kind: str) -> tuple[tuple, list, dict]:
    """Grid, numbers and compile-time constants that both kernels share."""
    columns = x.shape[-1]
    rows = x.numel() // columns
    grid = (-(-rows // TILE["ROWS"]), -(-columns // TILE["COLS"]))
    constants = {"TERNARY": kind == "ternary", "PER_CHANNEL": theta.numel() > 1, "DIVIDES": divides(x.device)}
    return grid, [rows, columns, float(t_steps), 1 / t_steps], {**constants, **TILE, **LAUNCH}


class FusedEquilibrium(torch.autograd.Function):
    """See `fused_equilibrium`. Backward computes the rate again from x, which is saved anyway: a third less memory."""

    @staticmethod
    def forward(
        ctx, x: Tensor, theta: Tensor, t_steps: int, kind: str, mask: Tensor | None, shares: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        x, theta = x.contiguous(), theta.contiguous()
        mask = None if mask is None else mask.to(x.dtype).contiguous()
        ctx.save_for_backward(x, theta, mask, shares)
        ctx.t_steps, ctx.kind = t_steps, kind
        out = torch.empty_like(x)
        grid, numbers, constants = _arguments(x, theta, t_steps, kind)
        asked = {"MASKED": mask is not None, "RATED": shares is not None}
        partial = x.new_empty(grid[0] if shares is not None else 0, x.shape[-1])
        with torch.cuda.device_of(x):
            equilibrium_forward[grid](
                x, theta, theta if mask is None else mask, x if shares is None else shares, out, partial,
                *numbers, **asked, **constants,
            )  # fmt: skip
        return out, None if shares is None else partial.sum(0)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor, grad_rate: Tensor | None):
        x, theta, mask, shares = ctx.saved_tensors
        grad, grad_x = grad.contiguous(), torch.empty_like(x)
        slope = x if shares is None else grad_rate.contiguous()
        grid, numbers, constants = _arguments(x, theta, ctx.t_steps, ctx.kind)
        asked = {"MASKED": mask is not None, "RATED": shares is not None}
        partial = x.new_empty(grid[0], x.shape[-1])
        with torch.cuda.device_of(x):
            equilibrium_backward[grid](
                grad, slope, x, theta, theta if mask is None else mask, x if shares is None else shares, grad_x,
                partial, *numbers, NEURONS[ctx.kind].low, **asked, **constants,
            )  # fmt: skip
        return grad_x, partial.sum_to_size(theta.shape), None, None, None, None


def fused_equilibrium(
    x: Tensor, theta: Tensor, t_steps: int, kind: str, mask: Tensor | None = None, shares: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """`Equilibrium.apply(x, theta, settle(x, theta, t_steps, NEURONS[kind], 1.0), NEURONS[kind].low)` in one kernel.

    `x [..., D]` float32, `theta [D]` or `[1]` -> values `[..., D]`, times `mask [D]` if given, and with `shares [...]`,
    each token's weight, the rates `[D]`, their weighted sum of |value| / theta. Differentiable once.
    """
    return FusedEquilibrium.apply(x, theta, t_steps, kind, mask, shares)
