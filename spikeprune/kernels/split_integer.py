"""The engine's products: linear maps of spikes on the integer units of the tensor cores, with float32's accuracy, and
the neurons behind them. How neurons fire: `firing.py`; the same products on Hopper chips: `wgmma.py`; the engine's
other kernels: `norm_attention.py`; who calls them in which order: `kernels/encoder.py`.

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

from spikeprune.kernels import wgmma
from spikeprune.kernels.equilibrium import INSTALLED
from spikeprune.kernels.firing import CLOSED, PLAIN, Firing

PAD = 64  # channels of a train and rows of the limbs are padded to a multiple
MOST = 127  # largest count that a train holds
SUM = 2.0**39  # bound of |l| n summed over a row: its upper two limbs then stay in int32
TILE = {"BM": 64, "BN": 64}  # rows and channels of one program; three accumulators of this size
LAUNCH = {"num_warps": 4, "num_stages": 3, "enable_fp_fusion": False}


class SplitIntegers(NamedTuple):
    codes: Tensor  # [3, out, in] int8, the highest first; padded
    scale: Tensor  # [out] float32: what the lowest bit is worth; padded
    bias: Tensor  # [out] float32; padded


def padded(width: int) -> int:
    return -(-width // PAD) * PAD


def split(weight: Tensor, bias: Tensor | None, most: int) -> SplitIntegers:
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
    return SplitIntegers(
        pad(codes, (0, padded(width) - width, 0, beyond)).contiguous(),
        pad(scale, (0, beyond)).contiguous(),
        pad(given.float(), (0, beyond)).contiguous(),
    )


def joined(parts: list[SplitIntegers]) -> SplitIntegers:
    """Several maps of one operand as one; each starts at a multiple of PAD."""
    return SplitIntegers(torch.cat([p.codes for p in parts], 1), *(torch.cat([p[i] for p in parts]) for i in (1, 2)))


def reference(n: Tensor, limbs: SplitIntegers, unit: Tensor) -> Tensor:
    """Currents `[S, rows, out]` of the train `n [S, rows, in]`, each step's in units of `unit [S]`: exact sums, then
    the kernel's operations in its order."""
    high, middle, low = (n.double() @ code.double().t() for code in limbs.codes)  # exact: below 2^53
    sums = (high * 256 + middle).float() * 256 + low.float()
    return sums * (limbs.scale * unit[:, None])[:, None] + limbs.bias


if INSTALLED:
    import triton
    import triton.language as tl
    from triton.tools.tensor_descriptor import TensorDescriptor

    from spikeprune.kernels.firing import current, fire, gelu

    @triton.jit(do_not_specialize=["rows"])
    def limb_product(
        a, codes, scale, bias, theta, kept, units, sent,
        rows, columns, first, stretch, leak, start, total,
        WIDTH: tl.constexpr, STEPS: tl.constexpr,
        MODE: tl.constexpr, ACT: tl.constexpr, TERNARY: tl.constexpr, LEAKS: tl.constexpr, FIRES: tl.constexpr,
        BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    ):  # fmt: skip
        """Trains a `[S, rows, WIDTH]` through `stretch` of the columns, from `first` on: the currents `sent [S, rows,
        stretch]` float32, or (FIRES) what their neurons send, int8. The membranes stay in registers."""
        tiles = stretch // BN
        below = (tl.program_id(0) // tiles) * BM
        row = below.to(tl.int64) + tl.arange(0, BM)
        here = (tl.program_id(0) % tiles) * BN
        column = first + here + tl.arange(0, BN)
        inside = (row < rows)[:, None]
        high = first + here
        middle, low = high + columns, high + 2 * columns
        factor, shift = tl.load(scale + column)[None, :], tl.load(bias + column)[None, :]
        zero = tl.zeros((BM, BN), dtype=tl.float32)
        u, before, n, size = zero, zero, zero, 1.0
        if FIRES:
            alive, size = tl.load(kept + column)[None, :] != 0, tl.load(theta + column)[None, :]
            u = zero + start * size
            size = tl.where(alive, size, float("inf"))
        step = tl.program_id(1) * STEPS
        place = step * rows + below
        sent += step.to(tl.int64) * rows * stretch
        sent += row[:, None] * stretch + (here + tl.arange(0, BN))[None, :]
        for t in tl.range(0, STEPS):
            h = tl.zeros((BM, BN), dtype=tl.int32)
            m = tl.zeros((BM, BN), dtype=tl.int32)
            o = tl.zeros((BM, BN), dtype=tl.int32)
            for j in tl.range(0, WIDTH, BK):
                x = a.load([place, j])
                h = tl.dot(x, codes.load([high, j]).T, h, out_dtype=tl.int32)
                m = tl.dot(x, codes.load([middle, j]).T, m, out_dtype=tl.int32)
                o = tl.dot(x, codes.load([low, j]).T, o, out_dtype=tl.int32)
            y = current(h, m, o, factor * tl.load(units + step + t), shift)
            if FIRES:
                if ACT == 1:
                    y = gelu(y)
                out, _, u, before, n = fire(y, t, u, before, n, size, leak, total, TERNARY, MODE, LEAKS, False)
                tl.store(sent, out, mask=inside)
            else:
                tl.store(sent, y, mask=inside)
            sent += rows.to(tl.int64) * stretch
            place += rows


def product(
    a: Tensor,
    limbs: SplitIntegers,
    units: Tensor,
    *,
    steps: int,
    reals: int,
    site: Firing | None = None,
    activation: int = PLAIN,
) -> tuple[Tensor | None, Tensor | None]:
    """The first `steps` of the train `a [S, rows, in]`, step t in units of `units [S]`, through `limbs`: currents of
    the first `reals` outputs `[steps, rows, reals]` float32, and the train that the others fire, `site` says how.
    `reals` is a multiple of PAD. On Hopper chips `wgmma` computes both, to the same bits."""
    how = {"steps": steps, "activation": activation}
    real = part(a, limbs, units, 0, reals, None, **how) if reals else None
    train = part(a, limbs, units, reals, limbs.codes.shape[1], site, **how) if site else None
    return real, train


def part(
    a: Tensor,
    limbs: SplitIntegers,
    units: Tensor,
    first: int,
    last: int,
    site: Firing | None,
    *,
    steps: int,
    activation: int,
) -> Tensor:
    """The columns from `first` to `last`, as `product`."""
    if wgmma.applies(a, site):
        return wgmma.product(a, limbs, units, first, last, site, steps=steps, activation=activation)
    return triton_product(a, limbs, units, first, last, site, steps=steps, activation=activation)


def triton_product(
    a: Tensor,
    limbs: SplitIntegers,
    units: Tensor,
    first: int,
    last: int,
    site: Firing | None,
    *,
    steps: int,
    activation: int,
) -> Tensor:
    _, rows, width = a.shape
    sent = a.new_empty(steps, rows, last - first, dtype=torch.float32 if site is None else torch.int8)
    own = Firing(limbs.scale, limbs.scale, CLOSED, False, 1.0, 0.0, 1.0) if site is None else site
    depth = 128 if width % 128 == 0 else 64
    at_once = 1 if site is None else steps
    grid = (-(-rows // TILE["BM"]) * ((last - first) // TILE["BN"]), steps // at_once)
    train = TensorDescriptor.from_tensor(a.view(-1, width), [TILE["BM"], depth])
    codes = TensorDescriptor.from_tensor(limbs.codes.view(-1, width), [TILE["BN"], depth])
    with torch.cuda.device_of(a):
        limb_product[grid](
            train, codes, limbs.scale, limbs.bias, own.theta, own.kept, units, sent,
            rows, limbs.codes.shape[1], first, last - first, own.leak, own.start, own.total, WIDTH=width, STEPS=at_once,
            MODE=own.mode, ACT=activation, TERNARY=own.ternary, LEAKS=own.leak != 1.0, FIRES=site is not None,
            BK=depth, **TILE, **LAUNCH,
        )  # fmt: skip
    return sent
