"""When the engine's products run on Hopper's tensor cores, in which tiles, and how they start: `wgmma_gluon.py` has
the kernels.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from spikeprune.kernels.firing import CLOSED, Firing
from spikeprune.kernels.wgmma_gluon import GLUON

CHUNK = 128  # bytes of a row that one TMA box holds: inputs of one link of the sum
HELD = 12 * CHUNK  # inputs of which 32 columns' weights stay beside the train's ring

if GLUON:
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    from spikeprune.kernels.wgmma_gluon import held_product, streamed_product


def applies(a: Tensor, site: Firing | None) -> bool:
    """Whether a train `a [S, rows, in]` goes through these kernels: on compute capability 9.0, with a release of Triton
    whose Gluon they are written in, and not through more inputs than `held_product` can hold the weights of."""
    chunks = a.shape[-1] <= HELD or site is None or site.mode == CLOSED
    return GLUON and a.is_cuda and capability(a.device) == (9, 0) and chunks


@cache
def capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def held_tile(links: int) -> dict:
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


def product(
    a: Tensor,
    limbs: tuple[Tensor, Tensor, Tensor],
    units: Tensor,
    first: int,
    last: int,
    site: Firing | None,
    *,
    steps: int,
    activation: int,
    tile: dict | None = None,
) -> Tensor:
    """As `split_integer.triton_product`; `tile` in place of the one that `held_tile` or `streamed_tile` chooses."""
    (_, rows, width), (codes, scale, bias) = a.shape, limbs
    links, stretch, fires = -(-width // CHUNK), last - first, site is not None
    sent = a.new_empty(steps, rows, stretch, dtype=torch.int8 if fires else torch.float32)
    theta, kept = (site.theta, site.kept) if fires else (scale, scale)
    own = [scale, bias, theta, kept, units, sent, rows, codes.shape[1], first, stretch, steps]
    stateful = fires and site.mode != CLOSED
    tile = (held_tile if stateful else streamed_tile)(links) if tile is None else tile
    described = [boxed(x, tile[side]) for x, side in ((a, "BM"), (codes, "BN"))]
    how = {"LINKS": links, "ACT": activation, "TERNARY": fires and site.ternary, "BK": CHUNK, **tile}
    how["enable_fp_fusion"] = False  # an activation's rounding decides about spikes: see `equilibrium.py`
    with torch.cuda.device_of(a):
        if stateful:
            groups = 2 if tile["PAIR"] else 1
            grid = (-(-rows // (groups * tile["BM"])) * (stretch // tile["BN"]),)
            state = (site.leak, site.start, site.total)
            how |= {"MODE": site.mode, "LEAKS": site.leak != 1.0, "num_warps": 4}
            held_product[grid](*described, *own, *state, **how)
        else:
            group = 8
            blocks = -(-(-(-rows // tile["BM"]) * steps) // group)
            grid = (blocks * group * -(-stretch // tile["BN"]),)
            how |= {"FIRES": fires, "GROUP": group, "num_warps": tile["WARPS"]}
            streamed_product[grid](*described, *own, site.total if fires else 1.0, **how)
    return sent


def boxed(x: Tensor, rows: int) -> TensorDescriptor:
    """`x [..., width]` as TMA reads it, a box of so many rows at a time; beyond the width it reads zeros."""
    return TensorDescriptor.from_tensor(x.view(-1, x.shape[-1]), [rows, CHUNK], layout(rows))


@cache
def layout(rows: int) -> gl.NVMMASharedLayout:
    """In which such a box lies in shared memory. Working it out at each launch took more than the rest of `boxed`."""
    return gl.NVMMASharedLayout.get_default_for([rows, CHUNK], gl.int8)
