"""Split-integer products of the fused encoder: linear maps of spikes on the integer units of the tensor cores, with
float32's accuracy, and the neurons that they drive. How neurons fire: `firing.py`; the same products on Hopper chips:
`wgmma.py`; the other kernels: `norm_attention.py`; the order in which they are called: `encoder.py`.

A spike, or a count of spikes, is a small integer. So is made what a synapse adds for one, `W diag(theta)`: each row is
rounded to 24-bit fixed point and split into three signed bytes b2, b1, b0, so that

    W diag(theta) n = scale (65536 b2 + 256 b1 + b0) n

is three int8 products whose sums are exact in int32 (n in int8, so counts up to 127). The only error is the rounding of
a weight, at most 2^-24 of the largest of its row; a float32 product rounds every partial sum to 2^-24 of it, and the
two errors are within a factor of about two of one another. Sums of integers do not depend on their order: a current is
the same bits in every batch, tiling and device, up to the activation that follows it.

| kernel | reference | tensors through memory, kernel / reference |
|---|---|---|
| `split_product` | `reference`, then `neurons.steps` over its rows | a train in, one out / float32 currents too |

Spike trains are int8 `[S, rows, columns]`, `columns` a multiple of 64 with zeros beyond the last channel. What a train
holds depends on the coding: spikes, running counts (the mean so far is linear in them) or one count of all steps.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from spikeprune.kernels import wgmma
from spikeprune.kernels.equilibrium import INSTALLED
from spikeprune.kernels.firing import CLOSED, PLAIN, Firing
from spikeprune.kernels.wgmma import Columns, SplitIntegers

PAD = 64  # channels of a train and rows of a split matrix are padded to a multiple
MOST = 127  # largest count that a train holds
SUM = 2.0**39  # bound of a row's sum of |weight| n, in units of its scale: the upper two bytes then stay in int32
TILE = {"BM": 64, "BN": 64}  # rows and channels of one program; three accumulators of this size
LAUNCH = {"num_warps": 4, "num_stages": 3, "enable_fp_fusion": False}


def padded(width: int) -> int:
    return -(-width // PAD) * PAD


def split(weight: Tensor, bias: Tensor | None, most: int) -> SplitIntegers:
    """Split `weight [out, in]`, which has theta folded in, for operands of magnitude at most `most`."""
    w = weight.detach().double()
    rows, width = w.shape
    largest, whole = w.abs().amax(1).clamp(min=1e-30), w.abs().sum(1).clamp(min=1e-30)
    steps = torch.minimum((2**23 - 2**16) / largest, (SUM / most - width) / whole)  # of the fixed point, per unit
    scale = (1 / steps).clamp(min=1e-30).float()
    n = (w / scale.double()[:, None]).round().long()
    low = (n + 128) % 256 - 128
    n = (n - low) // 256
    middle = (n + 128) % 256 - 128
    codes = torch.stack([(n - middle) // 256, middle, low]).to(torch.int8)
    beyond = padded(rows) - rows
    shift = w.new_zeros(rows) if bias is None else bias.detach()
    return SplitIntegers(
        pad(codes, (0, padded(width) - width, 0, beyond)).contiguous(),
        pad(scale, (0, beyond)).contiguous(),
        pad(shift.float(), (0, beyond)).contiguous(),
    )


def concatenated(parts: list[SplitIntegers]) -> SplitIntegers:
    """Several maps of one operand as one map; the outputs of each start at a multiple of PAD."""
    return SplitIntegers(torch.cat([p.codes for p in parts], 1), *(torch.cat([p[i] for p in parts]) for i in (1, 2)))


def reference(n: Tensor, weight: SplitIntegers, unit: Tensor) -> Tensor:
    """Currents `[S, rows, out]` of the train `n [S, rows, in]`, each step's in units of `unit [S]`: exact sums, then
    the kernel's operations in its order."""
    high, middle, low = (n.double() @ code.double().t() for code in weight.codes)  # exact: below 2^53
    sums = (high * 256 + middle).float() * 256 + low.float()
    return sums * (weight.scale * unit[:, None])[:, None] + weight.bias


if INSTALLED:
    import triton
    import triton.language as tl
    from triton.tools.tensor_descriptor import TensorDescriptor

    from spikeprune.kernels.firing import current, fire, gelu

    @triton.jit(do_not_specialize=["rows"])
    def split_product(
        a, codes, scale, bias, theta, kept, units, sent,
        rows, columns, first, stretch, leak, start, total,
        WIDTH: tl.constexpr, STEPS: tl.constexpr,
        MODE: tl.constexpr, ACT: tl.constexpr, TERNARY: tl.constexpr, LEAKS: tl.constexpr, FIRES: tl.constexpr,
        BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    ):  # fmt: skip
        """Trains a `[S, rows, WIDTH]` through `stretch` of the columns, from `first` on: the currents `sent [S, rows,
        stretch]` float32, or (FIRES) the trains of their neurons, int8. The membranes stay in registers."""
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
    weight: SplitIntegers,
    units: Tensor,
    *,
    steps: int,
    reals: int,
    neurons: Firing | None = None,
    activation: int = PLAIN,
) -> tuple[Tensor | None, Tensor | None]:
    """The first `steps` of the train `a [S, rows, in]`, step t in units of `units [S]`, times `weight`: currents of the
    first `reals` outputs `[steps, rows, reals]` float32, and the train that the `neurons` of the other outputs fire
    `[steps, rows, out - reals]` int8; None for what there is none of. `reals` is a multiple of PAD. On Hopper chips
    `wgmma` computes both, to the same bits."""
    real = train = None
    if reals:
        real = columns_of(Columns(a, weight, units, steps, activation, 0, reals, None))
    if neurons is not None:
        train = columns_of(Columns(a, weight, units, steps, activation, reals, weight.codes.shape[1], neurons))
    return real, train


def columns_of(task: Columns) -> Tensor:
    """Currents `[steps, rows, last - first]` float32, or the train of the neurons, int8."""
    return wgmma.product(task) if wgmma.applies(task.a, task.neurons) else triton_product(task)


def triton_product(task: Columns) -> Tensor:
    """`columns_of` by `split_product`."""
    a, weight, neurons = task.a, task.weight, task.neurons
    _, rows, width = a.shape
    sent = task.output()
    firing = Firing(weight.scale, weight.scale, CLOSED, False, 1.0, 0.0, 1.0) if neurons is None else neurons
    depth = 128 if width % 128 == 0 else 64
    at_once = 1 if neurons is None else task.steps
    grid = (-(-rows // TILE["BM"]) * (task.width // TILE["BN"]), task.steps // at_once)
    train = TensorDescriptor.from_tensor(a.view(-1, width), [TILE["BM"], depth])
    codes = TensorDescriptor.from_tensor(weight.codes.view(-1, width), [TILE["BN"], depth])
    with torch.cuda.device_of(a):
        split_product[grid](
            train, codes, weight.scale, weight.bias, firing.theta, firing.kept, task.units, sent,
            rows, weight.codes.shape[1], task.first, task.width, firing.leak, firing.start, firing.total,
            WIDTH=width, STEPS=at_once, MODE=firing.mode, ACT=task.activation, TERNARY=firing.ternary,
            LEAKS=firing.leak != 1.0, FIRES=neurons is not None, BK=depth, **TILE, **LAUNCH,
        )  # fmt: skip
    return sent
