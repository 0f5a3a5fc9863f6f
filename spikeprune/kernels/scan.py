"""Triton kernels of a simulation without gradient: the membranes of a spiking layer over all steps, in registers.

| kernel | reference | tensors through memory, kernel / reference |
|---|---|---|
| `membrane_scan` | `simulation.simulate` with `coding.drive` before, mask and `coding.read` after | 2 T / about 25 T |
| `totals` | `equilibrium.settled_value` | 2 / about 20 |

A spike train is written only where a synchronous coding reads it, and then as its readers see it. Counts are summed
over tokens before they leave the chip. Covered are binary and ternary neurons, IF and LIF, in float32 on CUDA, without
traces.

Rounding. Spikes, ASR, counts and per-step pulses of the same currents are bit-equal to the reference on the same
device: the same operations in the same order, none contracted. The running mean of a train is summed step by step;
torch's `cumsum` may sum in another order or precision, so there the two agree to a few ulp, and a current that follows
from it may cross a threshold in one of them only.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from spikeprune.kernels.equilibrium import INSTALLED, KINDS, LAUNCH, divides
from spikeprune.snn.neurons import NEURONS, leak_weights

TILE = {"ROWS": 8, "COLS": 128}  # tokens of one sentence, and channels, of one program

if INSTALLED:
    import triton
    import triton.language as tl

    from spikeprune.kernels.equilibrium import rate

    @triton.jit
    def sentence_tile(tokens, columns, ROWS: tl.constexpr, COLS: tl.constexpr):
        """This program's sentence, its tokens, its columns, its offsets into the sentence's `[N, D]`, and which of
        them exist. Offsets are 32-bit and the pointers move: 64-bit ones would fill the registers."""
        tiles = tl.cdiv(tokens, ROWS)
        token = (tl.program_id(0) % tiles) * ROWS + tl.arange(0, ROWS)
        column = tl.program_id(1) * COLS + tl.arange(0, COLS)
        exists = (token < tokens)[:, None] & (column < columns)[None, :]
        sentence = (tl.program_id(0) // tiles).to(tl.int64)
        return sentence, token, column, token[:, None] * columns + column[None, :], exists

    @triton.jit
    def quotient(x, divisor, inverse, DIVIDES: tl.constexpr):
        """`x / divisor` as torch divides by a number on this device, see `equilibrium.divides`."""
        if DIVIDES:
            y = tl.div_rn(x, divisor)
        else:
            y = x * inverse
        return y

    @triton.jit(do_not_specialize=["tokens", "stride", "step"])
    def membrane_scan(
        y, theta, mask, real, weights, norms, seen, a, mean, counts,
        tokens, columns, stride, step, leak, start, total, inverse,
        T: tl.constexpr, TERNARY: tl.constexpr, PER_CHANNEL: tl.constexpr, DIVIDES: tl.constexpr, WRAPPED: tl.constexpr,
        SEEN: tl.constexpr, MEANS: tl.constexpr, MASKED: tl.constexpr, COUNT: tl.constexpr, MEAN: tl.constexpr,
        ROWS: tl.constexpr, COLS: tl.constexpr,
    ):  # fmt: skip
        """Outputs y of f `[T, B, N, D]` (or `[B, N, D]`, stride 0, for all steps) -> ASR a `[B, N, D]`; optionally
        what readers see `[T, B, N, D]`, the mean current `[B, N, D]`, spikes `[T, tiles, D]` on real tokens."""
        sentence, token, column, at, exists = sentence_tile(tokens, columns, ROWS, COLS)
        first = sentence * tokens * columns
        y, seen, a, mean = y + first, seen + first, a + first, mean + first
        counts += tl.program_id(0).to(tl.int64) * columns
        inside = column < columns
        size = tl.load(theta + column * PER_CHANNEL, mask=inside, other=1.0)[None, :]
        kept = size * 0 + 1.0
        if MASKED:
            kept = tl.load(mask + column, mask=inside, other=0.0)[None, :]
        if COUNT:
            counted = tl.load(real + sentence * tokens + token, mask=token < tokens, other=0).to(tl.float32)[:, None]
        zero = tl.zeros((ROWS, COLS), dtype=tl.float32)
        u, sent, mean_current, before, so_far = zero + start * size, zero, zero, zero, zero
        for t in range(T):
            x = tl.load(y + at, mask=exists, other=0.0)
            norm = tl.load(norms + t)
            weight = tl.load(weights + t)
            if WRAPPED:
                weighted = norm * x
                x = weighted - leak * before
                before = weighted
            u = leak * u + x
            if TERNARY:
                s = (u >= size * 0.5).to(tl.float32) - (u <= size * -0.5).to(tl.float32)
            else:
                s = (u >= size).to(tl.float32)
            u = u - size * s
            sent += weight * s
            if MEAN:
                mean_current += weight * x
            if SEEN:
                out = size * s * kept
                if MEANS:
                    so_far = leak * so_far + out
                    out = tl.div_rn(so_far, zero + norm)
                tl.store(seen + at, out, mask=exists)
            if COUNT:
                tl.store(counts + column, tl.sum(tl.abs(s) * counted, axis=0), mask=inside)
            y += stride
            seen += step
            counts += tl.num_programs(0) * columns
        tl.store(a + at, quotient(sent, total, inverse, DIVIDES), mask=exists)
        if MEAN:
            tl.store(mean + at, quotient(mean_current, total, inverse, DIVIDES), mask=exists)

    @triton.jit(do_not_specialize=["tokens"])
    def totals(
        x, theta, mask, real, value, counts, tokens, columns, t, inverse,
        TERNARY: tl.constexpr, PER_CHANNEL: tl.constexpr, DIVIDES: tl.constexpr, MASKED: tl.constexpr,
        COUNT: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    ):  # fmt: skip
        """`equilibrium.settled_value`: the masked value `[B, N, D]`, and the spikes of this tile's tokens `[tiles,
        D]`."""
        sentence, token, column, at, exists = sentence_tile(tokens, columns, ROWS, COLS)
        first = sentence * tokens * columns
        x, value = x + first, value + first
        inside = column < columns
        size = tl.load(theta + column * PER_CHANNEL, mask=inside, other=1.0)[None, :]
        a = rate(tl.div_rn(tl.load(x + at, mask=exists, other=0.0), size), t, inverse, TERNARY, DIVIDES)
        if MASKED:
            kept = tl.load(mask + column, mask=inside, other=0.0)[None, :]
            tl.store(value + at, size * kept * a, mask=exists)
        else:
            tl.store(value + at, size * a, mask=exists)
        if COUNT:
            counted = tl.load(real + sentence * tokens + token, mask=token < tokens, other=0).to(tl.float32)[:, None]
            fired = tl.sum(tl.floor(tl.abs(a) * t + 0.5) * counted, axis=0)  # a whole number again, whatever a rounded
            tl.store(counts + tl.program_id(0).to(tl.int64) * columns + column, fired, mask=inside)


def covers(like: Tensor, kind: str, coding: str, mask: Tensor | None) -> bool:
    """Whether the kernels of this file compute a layer of neurons of this kind and coding; `like`: a tensor with the
    type, device and channels of its currents."""
    if mask is not None and (mask.dim() != 1 or mask.dtype != torch.float32):
        return False
    return kind in KINDS and coding in READS and like.is_cuda and like.dtype == torch.float32 and like.numel() > 0


@cache
def schedule(t_steps: int, leak: float, device: torch.device) -> tuple[Tensor, Tensor, float]:
    """Weights of the steps in the ASR `[T]`, `S_t = sum_{i<t} leak^i` `[T]`, and the sum of the weights."""
    weights = leak_weights(t_steps, leak).tolist()
    norms = [float(sum(leak**i for i in range(t))) for t in range(1, t_steps + 1)]
    as_tensor = {"dtype": torch.float32, "device": device}
    return torch.tensor(weights, **as_tensor), torch.tensor(norms, **as_tensor), sum(weights)


# coding: whether f is applied to running means, and what readers of a train see
READS = {"accumulate": (False, None), "per_step": (False, "pulses"), "running_mean": (True, "means")}


class Scanned(NamedTuple):
    a: Tensor  # ASR [B, N, D], before the mask
    mean: Tensor | None  # mean input current [B, N, D]
    seen: Tensor | None  # what readers of the train see, masked [T, B, N, D]
    counts: Tensor | None  # spikes on real tokens, before the mask [T, B, D]


def fused_scan(
    y: Tensor,
    theta: Tensor,
    t_steps: int,
    kind: str,
    leak: float,
    *,
    wrapped: bool = False,
    seen: str | None = None,
    mask: Tensor | None = None,
    tokens: Tensor | None = None,
    mean: bool = False,
) -> Scanned:
    """`simulation.simulate` of one layer in one kernel, without gradient.

    Args:
        y: f of what is read at each step `[T, B, N, D]`, or the constant current `[B, N, D]`.
        wrapped: `y` is f of running means, so the currents are its weighted differences.
        seen: what readers of the train see, "pulses" or "means"; None: the train is not read.
        mask: `[D]`, silences channels of the train that is seen.
        tokens: `[B, N]`, where spikes are counted.
        mean: whether to return the mean input current.
    """
    y, theta = y.detach().contiguous(), theta.detach().contiguous()
    shape = y.shape[-3:]
    weights, norms, total = schedule(t_steps, leak, y.device)
    grid, tiles = _grid(shape)
    a, unused = torch.empty(shape, dtype=y.dtype, device=y.device), theta
    means = torch.empty_like(a) if mean else None
    train = y.new_empty(t_steps, *shape) if seen else None
    counts = None if tokens is None else y.new_empty(t_steps, shape[0], tiles, shape[2])
    outputs = [unused if x is None else x for x in (train, a, means, counts)]
    size = a.numel()
    with torch.cuda.device_of(y):
        membrane_scan[grid](
            y, theta, unused if mask is None else mask, unused if tokens is None else as_bytes(tokens), weights, norms,
            *outputs,
            shape[1], shape[2], size if y.dim() == 4 else 0, size, leak, NEURONS[kind].start, total, 1 / total,
            T=t_steps, TERNARY=kind == "ternary", PER_CHANNEL=theta.numel() > 1, DIVIDES=divides(y.device),
            WRAPPED=wrapped, SEEN=seen is not None, MEANS=seen == "means", MASKED=mask is not None,
            COUNT=tokens is not None, MEAN=mean, **TILE, **LAUNCH,
        )  # fmt: skip
    return Scanned(a, means, train, None if counts is None else counts.sum(2))


def fused_totals(
    x: Tensor, theta: Tensor, t_steps: int, kind: str, mask: Tensor | None, tokens: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """`equilibrium.settled_value` of IF neurons in one kernel: value `[B, N, D]`, spikes `[1, B, D]` or None."""
    x, theta = x.detach().contiguous(), theta.detach().contiguous()
    grid, tiles = _grid(x.shape)
    value = torch.empty_like(x)
    counts = None if tokens is None else x.new_empty(x.shape[0], tiles, x.shape[2])
    with torch.cuda.device_of(x):
        totals[grid](
            x, theta, theta if mask is None else mask, theta if tokens is None else as_bytes(tokens), value,
            theta if counts is None else counts, x.shape[1], x.shape[2], float(t_steps), 1 / t_steps,
            TERNARY=kind == "ternary", PER_CHANNEL=theta.numel() > 1, DIVIDES=divides(x.device),
            MASKED=mask is not None, COUNT=tokens is not None, **TILE, **LAUNCH,
        )  # fmt: skip
    return value, None if counts is None else counts.sum(1)[None]


def as_bytes(tokens: Tensor) -> Tensor:
    return tokens.contiguous().view(torch.uint8)


def _grid(shape: torch.Size) -> tuple[tuple[int, int], int]:
    """Programs for `[B, N, D]`, and how many of them share a sentence's tokens."""
    tiles = -(-shape[1] // TILE["ROWS"])
    return (shape[0] * tiles, -(-shape[2] // TILE["COLS"])), tiles
