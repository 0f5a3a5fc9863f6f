"""Matrix products of few-bit weights with spike counts, in whole numbers: int8 times int8, summed in int32, exactly.

A synapse sees `theta * n / t`, n spikes (signed) in t steps. With one theta for all of its inputs, or with theta folded
into the codes before they were quantized, `W x = unit * (codes n) / t`: the sum is over whole numbers, and what is real
is multiplied once an output channel.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import pad

PRODUCTS = ("float", "int8")
MOST_STEPS = 127  # of a train whose count fits int8


def integer_linear(
    x: Tensor, *, codes: Tensor, unit: Tensor, bias: Tensor, theta: Tensor, steps: Callable[[Tensor], Tensor]
) -> Tensor:
    """`[..., N, in]` values `theta * n / t` -> `[..., N, out]`; int8 codes `[out, in]`, unit `[out]`, theta `[in|1]`.

    The result is in x's dtype. Outputs differ from the float product's by rounding only: it adds real numbers, in some
    order, where this one adds whole ones.
    """
    t = steps(x)  # [R, 1, 1, 1], or a number's worth of dimensions
    n = spike_counts(x, theta, t)
    sums = int_matmul(n.flatten(0, -2), codes).unflatten(0, n.shape[:-1])
    return sums.to(unit.dtype) * unit / t + bias


def spike_counts(x: Tensor, theta: Tensor, t: Tensor) -> Tensor:
    """Whole numbers n, int8, of the values `theta * n / t`."""
    return (x / theta * t).round().to(torch.int8) if theta.numel() else x.to(torch.int8)


def steps_behind(x: Tensor, *, t_steps: int, coding: str) -> Tensor:
    """The t of values `theta * n / t`, shaped to broadcast over `x`, from a source that fires for `t_steps`.

    `[B, N, D]` is a mean over the whole train. `[R, B, N, D]` is what a synchronous coding reads step by step: one
    spike (`per_step`) or the mean so far (`running_mean`); after the train's end its mean is held.
    """
    if x.dim() == 3:
        return x.new_tensor(float(t_steps))
    sooner = range(1, min(t_steps, len(x)) + 1)
    seen = [1.0 if coding == "per_step" else float(t) for t in sooner]
    return x.new_tensor(seen + [float(t_steps)] * (len(x) - len(seen))).view(-1, 1, 1, 1)


def int_matmul(a: Tensor, b: Tensor) -> Tensor:
    """`[M, K]` and `[N, K]` int8 -> `a b^T [M, N]` int32.

    K goes up to a multiple of 8: cuBLAS asks for it, and for K = 1 torch 2.13 answers wrongly on the CPU. On CUDA N
    does so too, and M to 32 or more. Zeros add nothing.
    """
    (m, k), n = a.shape, len(b)
    rows, columns = (max(32 - m, -m % 8), -n % 8) if a.is_cuda else (0, 0)
    if rows or columns or k % 8:
        a, b = pad(a, (0, -k % 8, 0, rows)), pad(b, (0, -k % 8, 0, columns))
    return torch._int_mm(a.contiguous(), b.t())[:m, :n]


@cache
def exact(device: torch.device) -> bool:
    """Whether int8 products are exact there: processors without instructions for them may saturate sums of 16 bits."""
    high = torch.full((32, 64), 127, dtype=torch.int8, device=device)
    low = torch.full((8, 64), -127, dtype=torch.int8, device=device)
    return bool((int_matmul(high, low) == -127 * 127 * 64).all()) and bool((int_matmul(low, low) == 127**2 * 64).all())
