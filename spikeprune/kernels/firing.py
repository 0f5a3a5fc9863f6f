"""How neurons fire inside the engine's kernels: functions that those of `split_integer.py`, `wgmma_gluon.py` and
`norm_attention.py` call on what they hold in registers.

| function | reference |
|---|---|
| `current` | `split_integer.reference` |
| `fire` | `neurons.steps`, `neurons.settle`, `coding.drive_running_mean` |
| `gelu` | the exact one, to 2e-7 of the larger of 1 and its argument, as torch's own is |

A neuron that is pruned, or is none, has an infinite theta here: no current fires it, in any mode.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from spikeprune.kernels.equilibrium import INSTALLED

CLOSED, PER_STEP, RUNNING = 0, 1, 2  # what a site does with its currents, and what it writes
PLAIN, GELU = 0, 1  # what is applied to a product before the neurons


class Firing(NamedTuple):
    """How the neurons behind a map fire; `theta` and `kept` are for all of its padded outputs."""

    theta: Tensor  # [out], 1 where there is no neuron
    kept: Tensor  # [out], 0 where a neuron is pruned, or there is none
    mode: int
    ternary: bool
    leak: float
    start: float  # membrane at rest, in units of theta
    total: float  # steps of the train


if INSTALLED:
    import triton
    import triton.language as tl

    @triton.jit
    def current(high, middle, low, factor, shift):
        """Of three sums in int32; the products with 256 are exact, so that fused or not they round alike."""
        upper = (high * 256 + middle).to(tl.float32)
        return tl.fma(upper, 256.0, low.to(tl.float32)) * factor + shift

    @triton.jit
    def gelu(x):
        """`x` times the normal's distribution: `max(x, 0) - |x| 2^p(|x|)`, p fitted to log2 of its tail."""
        a = tl.abs(x)
        p = tl.fma(a, -1.6904011772567173e-06, 2.5083301807171665e-05)
        p = tl.fma(a, p, -0.0001144626658060588)
        p = tl.fma(a, p, -0.0003233421593904495)
        p = tl.fma(a, p, 0.007333383895456791)
        p = tl.fma(a, p, -0.05271419882774353)
        p = tl.fma(a, p, -0.4591154456138611)
        p = tl.fma(a, p, -1.151123285293579)
        p = tl.fma(a, p, -0.9999988675117493)
        return tl.fma(-a, tl.exp2(p), tl.maximum(x, 0.0))

    @triton.jit
    def settled(r, t, TERNARY: tl.constexpr):
        """`neurons.binary_settled` or `ternary_settled` of `r = x/theta`."""
        n = t * r
        if TERNARY:
            sign = (n > 0).to(tl.float32) - (n < 0).to(tl.float32)
            n = sign * tl.minimum(tl.floor(tl.abs(n) + 0.5), t)
        else:
            n = tl.clamp(tl.floor(n + 0.5), 0.0, t)
        return n

    @triton.jit
    def fire(
        y, t, u, before, n, size, leak, total,
        TERNARY: tl.constexpr, MODE: tl.constexpr, LEAKS: tl.constexpr, CONSTANT: tl.constexpr,
    ):  # fmt: skip
        """One step of a site: f's answer y -> what its train holds at step t (int8), its spikes, the state after it.

        u: membrane; before: what f answered, weighted, a step sooner; n: spikes so far, with their sign. `total`: T of
        the closed form. LEAKS: leak is not 1. CONSTANT: y is the current itself, the same at every step.
        """
        if MODE == 0:
            s = settled(tl.div_rn(y, size), total, TERNARY)
            out = s.to(tl.int8)
        else:
            x = y
            if MODE == 2 and not CONSTANT:
                weighted = (t + 1) * 1.0 * y
                x = weighted - before
                before = weighted
            if LEAKS:
                u = leak * u
            u += x
            if TERNARY:
                up, down = u >= size * 0.5, u <= size * -0.5
                u = tl.where(up, u - size, tl.where(down, u + size, u))
                s = up.to(tl.float32) - down.to(tl.float32)
                out = up.to(tl.int8) - down.to(tl.int8)
            else:
                up = u >= size
                u = tl.where(up, u - size, u)
                s, out = up.to(tl.float32), up.to(tl.int8)
            if MODE == 2:
                n = n + s
                out = n.to(tl.int8)
        return out, s, u, before, n
