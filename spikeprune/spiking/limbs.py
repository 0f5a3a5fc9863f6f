"""The engine's products: linear maps of spikes on the integer units of the tensor cores, with float32's accuracy, and
the neurons behind them. Its other kernels: `norm_attention.py`; who calls them in which order: `models/engine.py`.

A spike, or a count of spikes, is a small whole number; what a synapse adds for one, `W diag(theta)`, is made one as
well: each row of it is rounded to 24-bit fixed point and cut into three signed bytes ("limbs"), so that

    W diag(theta) n = scale (65536 l2 + 256 l1 + l0) n

is three int8 products whose sums are exact in int32 (n in int8, so counts up to 127). Only the rounding of a weight is
left, at most 2^-24 of the largest of its row, where a float32 product rounds every partial sum to 2^-24 of it; the two
errors are within a factor of two or so of one another. Sums of whole numbers do not depend on their order: a current is
the same bits in every batch, in every tiling and on every device, up to the activation behind it.

| kernel | reference | tensors through memory, kernel / reference |
|---|---|---|
| `limb_product` | `reference`, and `neurons.steps` over its rows | a train in, one out / currents in float32 besides |

Spike trains are int8 `[S, rows, columns]`, `columns` a multiple of 64 with zeros beyond the last channel. What a train
holds depends on who reads it: spikes, running counts (so that a mean so far is linear in it) or one count of all.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from spikeprune.spiking.kernels import INSTALLED

PAD = 64  # channels of a train and rows of the limbs are padded to a multiple
MOST = 127  # largest count that a train holds
SUM = 2.0**39  # bound of |l| n summed over a row: its upper two limbs then stay in int32
TILE = {"BM": 64, "BN": 64}  # rows and channels of one program; three accumulators of this size
LAUNCH = {"num_warps": 4, "num_stages": 3, "enable_fp_fusion": False}
CLOSED, PER_STEP, RUNNING = 0, 1, 2  # what a site does with its currents, and what it writes
PLAIN, GELU = 0, 1  # what is applied to a product before the neurons


class Limbs(NamedTuple):
    codes: Tensor  # [3, out, in] int8, the highest first; padded
    scale: Tensor  # [out] float32: what the lowest bit is worth; padded
    bias: Tensor  # [out] float32; padded


class Firing(NamedTuple):
    """How the neurons behind a map fire; `theta` and `kept` are for all of its padded outputs."""

    theta: Tensor  # [out], 1 where there is no neuron
    kept: Tensor  # [out], 0 where a neuron is pruned, or there is none
    mode: int
    ternary: bool
    leak: float
    start: float  # membrane at rest, in units of theta
    total: float  # steps of the train


def padded(width: int) -> int:
    return -(-width // PAD) * PAD


def split(weight: Tensor, bias: Tensor | None, most: int) -> Limbs:
    """`weight [out, in]`, theta folded into it, for operands of at most `most` in size."""
    w = weight.detach().double()
    rows, width = w.shape
    largest, whole = w.abs().amax(1).clamp(min=1e-30), w.abs().sum(1).clamp(min=1e-30)
    room = torch.minimum((2**23 - 2**16) / largest, (SUM / most - width) / whole)
    scale = (1 / room).clamp(min=1e-30).float()
    n = (w / scale.double()[:, None]).round().long()
    limbs = []
    for _ in range(2):
        limbs.append((n + 128) % 256 - 128)
        n = (n - limbs[-1]) // 256
    codes = torch.stack([n, *reversed(limbs)]).to(torch.int8)
    beyond = padded(rows) - rows
    given = w.new_zeros(rows) if bias is None else bias.detach()
    return Limbs(
        pad(codes, (0, padded(width) - width, 0, beyond)).contiguous(),
        pad(scale, (0, beyond)).contiguous(),
        pad(given.float(), (0, beyond)).contiguous(),
    )


def joined(parts: list[Limbs]) -> Limbs:
    """Several maps of one operand as one; each starts at a multiple of PAD."""
    return Limbs(torch.cat([p.codes for p in parts], 1), *(torch.cat([p[i] for p in parts]) for i in (1, 2)))


def reference(n: Tensor, limbs: Limbs, unit: Tensor) -> Tensor:
    """Currents `[S, rows, out]` of the train `n [S, rows, in]`, each step's in units of `unit [S]`: exact sums, then
    the kernel's operations in its order."""
    high, middle, low = (n.double() @ code.double().t() for code in limbs.codes)  # exact: below 2^53
    sums = (high * 256 + middle).float() * 256 + low.float()
    return sums * (limbs.scale * unit[:, None])[:, None] + limbs.bias


if INSTALLED:
    import triton
    import triton.language as tl
    from triton.tools.tensor_descriptor import TensorDescriptor

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
    def fire(y, t, u, before, n, size, leak, total, TERNARY: tl.constexpr, MODE: tl.constexpr, CONSTANT: tl.constexpr):
        """One step of a site: f's answer y -> what its train holds at step t, its spikes, and the state after it.

        u: membrane; before: what f answered, weighted, a step sooner; n: spikes so far, with their sign. `total`: T of
        the closed form. CONSTANT: y is the current itself, the same at every step.
        """
        if MODE == 0:
            s = settled(tl.div_rn(y, size), total, TERNARY)
            out = s
        else:
            x = y
            if MODE == 2 and not CONSTANT:
                weighted = (t + 1) * 1.0 * y
                x = weighted - before
                before = weighted
            u = leak * u + x
            if TERNARY:
                s = (u >= size * 0.5).to(tl.float32) - (u <= size * -0.5).to(tl.float32)
            else:
                s = (u >= size).to(tl.float32)
            u = u - size * s
            out = s
            if MODE == 2:
                n = n + s
                out = n
        return out, s, u, before, n

    @triton.jit
    def gelu(x):
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))

    @triton.jit(do_not_specialize=["rows"])
    def limb_product(
        a, codes, scale, bias, theta, kept, units, train, real,
        rows, columns, reals, leak, start, total,
        WIDTH: tl.constexpr, STEPS: tl.constexpr,
        MODE: tl.constexpr, ACT: tl.constexpr, TERNARY: tl.constexpr, FIRES: tl.constexpr, REAL: tl.constexpr,
        BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    ):  # fmt: skip
        """Trains a `[S, rows, WIDTH]` -> what columns from `reals` on send, `train [S, rows, columns - reals]` (FIRES),
        and the currents of those before it, `real [S, rows, reals]` float32 (REAL). The membranes stay in registers."""
        tiles = columns // BN
        row = (tl.program_id(0) // tiles) * BM + tl.arange(0, BM)
        column = (tl.program_id(0) % tiles) * BN + tl.arange(0, BN)
        inside = (row < rows)[:, None]
        high = (tl.program_id(0) % tiles) * BN
        middle, low = high + columns, high + 2 * columns
        spikes = column >= reals
        size = tl.load(theta + column)[None, :]
        alive = tl.load(kept + column)[None, :]
        factor, shift = tl.load(scale + column)[None, :], tl.load(bias + column)[None, :]
        if REAL:
            real += row[:, None] * reals + column[None, :]
        if FIRES:
            train += row[:, None] * (columns - reals) + (column[None, :] - reals)
        zero = tl.zeros((BM, BN), dtype=tl.float32)
        u, before, n = zero + start * size, zero, zero
        first = tl.program_id(1) * STEPS
        place = first * rows + (tl.program_id(0) // tiles) * BM
        if REAL:
            real += first.to(tl.int64) * rows * reals
        for t in tl.range(0, STEPS):
            h = tl.zeros((BM, BN), dtype=tl.int32)
            m = tl.zeros((BM, BN), dtype=tl.int32)
            o = tl.zeros((BM, BN), dtype=tl.int32)
            for j in tl.range(0, WIDTH, BK):
                x = a.load([place, j])
                h = tl.dot(x, codes.load([high, j]).T, h, out_dtype=tl.int32)
                m = tl.dot(x, codes.load([middle, j]).T, m, out_dtype=tl.int32)
                o = tl.dot(x, codes.load([low, j]).T, o, out_dtype=tl.int32)
            sums = (h * 256 + m).to(tl.float32) * 256.0 + o.to(tl.float32)
            y = sums * (factor * tl.load(units + first + t)) + shift
            if REAL:
                tl.store(real, y, mask=inside & (column < reals)[None, :])
                real += rows.to(tl.int64) * reals
            if FIRES:
                if ACT == 1:
                    y = gelu(y)
                out, s, u, before, n = fire(y, t, u, before, n, size, leak, total, TERNARY, MODE, False)
                tl.store(train, (out * alive).to(tl.int8), mask=inside & spikes[None, :])
                train += rows.to(tl.int64) * (columns - reals)
            place += rows


def product(
    a: Tensor,
    limbs: Limbs,
    units: Tensor,
    *,
    steps: int,
    reals: int,
    site: Firing | None = None,
    activation: int = PLAIN,
    tile: dict | None = None,
    launch: dict | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """The first `steps` of the train `a [S, rows, in]`, step t in units of `units [S]`, through `limbs`: currents of
    the first `reals` outputs `[steps, rows, reals]` float32, and the train that the others fire, `site` says how."""
    _, rows, width = a.shape
    columns, fires = limbs.codes.shape[1], site is not None
    real = a.new_empty(steps, rows, reals, dtype=torch.float32) if reals else None
    train = a.new_empty(steps, rows, columns - reals) if fires else None
    unused, tile = limbs.scale, TILE if tile is None else tile
    own = (site.leak, site.start, site.total) if fires else (1.0, 0.0, 1.0)
    depth = 128 if width % 128 == 0 else 64
    grid = (-(-rows // tile["BM"]) * (columns // tile["BN"]), 1 if fires else steps)
    train_in = TensorDescriptor.from_tensor(a.view(-1, width), [tile["BM"], depth])
    codes = TensorDescriptor.from_tensor(limbs.codes.view(-1, width), [tile["BN"], depth])
    with torch.cuda.device_of(a):
        limb_product[grid](
            train_in, codes, limbs.scale, limbs.bias, site.theta if fires else unused, site.kept if fires else unused,
            units, unused if train is None else train, unused if real is None else real,
            rows, columns, reals, *own, WIDTH=width, STEPS=steps if fires else 1,
            MODE=site.mode if fires else CLOSED, ACT=activation, TERNARY=fires and site.ternary, FIRES=fires,
            REAL=reals > 0, BK=depth, **tile, **(LAUNCH if launch is None else launch),
        )  # fmt: skip
    return real, train
