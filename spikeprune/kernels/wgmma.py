"""The split-integer products on Hopper's tensor cores: when they apply, in which tiles, and their launch. The kernels
are in `wgmma_gluon.py`."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from spikeprune.kernels.firing import CLOSED, Firing
from spikeprune.kernels.wgmma_gluon import GLUON

CHUNK = 128  # bytes of a row that one TMA box holds: inputs of one link of the sum
RESIDENT = 12 * CHUNK  # most inputs whose weights, of 32 columns, fit in shared memory beside the train's ring

if GLUON:
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    from spikeprune.kernels.wgmma_gluon import resident_product, streamed_product


class SplitIntegers(NamedTuple):
    """A linear map whose weights are 24-bit integers in three bytes, and a scale for each row."""

    codes: Tensor  # [3, out, in] int8, the highest first; padded
    scale: Tensor  # [out] float32: what the lowest bit is worth; padded
    bias: Tensor  # [out] float32; padded


class Columns(NamedTuple):
    """A stretch of the outputs of a split-integer product: see `split_integer.product`."""

    a: Tensor  # [S, rows, in] int8: the train
    weight: SplitIntegers
    units: Tensor  # [S]
    steps: int  # of the train that are read
    activation: int
    first: int  # output
    last: int  # output, not included
    neurons: Firing | None  # None: the currents are wanted

    @property
    def width(self) -> int:
        return self.last - self.first

    def output(self) -> Tensor:
        """Memory for the result, `[steps, rows, width]`."""
        kind = torch.float32 if self.neurons is None else torch.int8
        return self.a.new_empty(self.steps, self.a.shape[1], self.width, dtype=kind)


def applies(a: Tensor, neurons: Firing | None) -> bool:
    """Whether these kernels compute a train `a [S, rows, in]`: on compute capability 9.0, with a release of Triton
    whose Gluon they are written in, and of no more inputs than `resident_product` can keep the weights of."""
    chunks = a.shape[-1] <= RESIDENT or neurons is None or neurons.mode == CLOSED
    return GLUON and a.is_cuda and capability(a.device) == (9, 0) and chunks


@cache
def capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def resident_tile(links: int) -> dict:
    """Weights that leave room for two programs on an SM (227 KB) do so, one's products behind the other's neurons;
    larger ones are shared by two warpgroups of one program; the largest stay for half the columns."""
    if links <= 3:
        return {"BM": 64, "BN": 64, "PAIR": False, "RING": 4}
    return {"BM": 64, "BN": 64 if links <= 6 else 32, "PAIR": True, "RING": 4}


def streamed_tile(links: int) -> dict:
    """Short sums in tiles of which two share an SM, one's start and end behind the other's middle; long ones in the
    tile that reads least."""
    if links <= 8:
        return {"BM": 128, "BN": 64, "WARPS": 4, "RING": 2}
    return {"BM": 128, "BN": 128, "WARPS": 8, "RING": 3}


def product(task: Columns, *, tile: dict | None = None) -> Tensor:
    """`split_integer.columns_of`; `tile` in place of the one that `resident_tile` or `streamed_tile` chooses."""
    (_, rows, width), (codes, scale, bias), neurons = task.a.shape, task.weight, task.neurons
    links, stretch, fires = -(-width // CHUNK), task.width, neurons is not None
    sent, steps, activation = task.output(), task.steps, task.activation
    theta, kept = (neurons.theta, neurons.kept) if fires else (scale, scale)
    arguments = [scale, bias, theta, kept, task.units, sent, rows, codes.shape[1], task.first, stretch, steps]
    stateful = fires and neurons.mode != CLOSED
    tile = (resident_tile if stateful else streamed_tile)(links) if tile is None else tile
    train, weights = boxed(task.a, tile["BM"]), boxed(codes, tile["BN"])
    # no fused multiply-add: the rounding of an activation decides about spikes, see `equilibrium.py`
    with torch.cuda.device_of(task.a):
        if stateful:
            groups = 2 if tile["PAIR"] else 1
            grid = (-(-rows // (groups * tile["BM"])) * (stretch // tile["BN"]),)
            resident_product[grid](
                train, weights, *arguments, neurons.leak, neurons.start, neurons.total,
                LINKS=links, MODE=neurons.mode, ACT=activation, TERNARY=neurons.ternary, LEAKS=neurons.leak != 1.0,
                BK=CHUNK, **tile, num_warps=4, enable_fp_fusion=False,
            )  # fmt: skip
        else:
            group = 8
            blocks = -(-(-(-rows // tile["BM"]) * steps) // group)
            grid = (blocks * group * -(-stretch // tile["BN"]),)
            streamed_product[grid](
                train, weights, *arguments, neurons.total if fires else 1.0,
                LINKS=links, ACT=activation, TERNARY=fires and neurons.ternary, FIRES=fires, GROUP=group,
                BK=CHUNK, **tile, num_warps=tile["WARPS"], enable_fp_fusion=False,
            )  # fmt: skip
    return sent


def boxed(x: Tensor, rows: int) -> TensorDescriptor:
    """`x [..., width]` as TMA reads it, a box of so many rows at a time; beyond the width it reads zeros."""
    return TensorDescriptor.from_tensor(x.view(-1, x.shape[-1]), [rows, CHUNK], layout(rows))


@cache
def layout(rows: int) -> gl.NVMMASharedLayout:
    """In which such a box lies in shared memory. Working it out at each launch took more than the rest of `boxed`."""
    return gl.NVMMASharedLayout.get_default_for([rows, CHUNK], gl.int8)
