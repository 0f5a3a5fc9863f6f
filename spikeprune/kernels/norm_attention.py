"""Kernels of the fused encoder: layer norm, or attention, with the neurons that it drives, over spike trains in bytes,
the membranes in registers; and the count of spikes. For its products and the format of a train see `split_integer.py`.

| kernel | reference | tensors that it does not write |
|---|---|---|
| `norm_scan` | layer norm of a current and a residual train, then the neurons | seven tensors of T steps |
| `attention_scan` | `softmax(q k^T + bias) v` at each step, then neurons | scores, context, both trains in float32 |
| `spike_counts` | `equilibrium.tokens_sum` of each step's spikes | |

Rounding. Layer norm, softmax and gelu round as float32 does, in another order than torch's: a current within rounding
of a threshold may fire on one side only. In `attention_scan` a query times the keys' theta is two halves of 11 bits, as
is each weight of the softmax: 22 bits against float32's 24, of the row's largest number.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spikeprune.kernels.equilibrium import INSTALLED
from spikeprune.kernels.firing import Firing

if INSTALLED:
    import triton
    import triton.language as tl

    from spikeprune.kernels.firing import fire

    @triton.jit(do_not_specialize=["rows"])
    def norm_scan(
        y, residual, residual_theta, units, gamma, beta, theta, train, value,
        rows, columns, width, eps, leak, start, total, norm,
        STEPS: tl.constexpr, MODE: tl.constexpr, TERNARY: tl.constexpr, LEAKS: tl.constexpr, CONSTANT: tl.constexpr,
        VALUE: tl.constexpr,
        ROWS: tl.constexpr, COLS: tl.constexpr,
    ):  # fmt: skip
        """Currents y `[S, rows, width]` plus a train's `theta * unit * n` `[S, rows, width]`, normalized -> the train
        `[S, rows, width]`, and theta times the ASR after the last step `[rows, columns]` (VALUE). CONSTANT: y `[rows,
        columns]` drives the neurons as it is, at every step."""
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        column = tl.arange(0, COLS)
        real = column < columns
        exists = (row < rows)[:, None] & real[None, :]
        stored = (row < rows)[:, None] & (column < width)[None, :]
        at, wide = row[:, None] * columns + column[None, :], row[:, None] * width + column[None, :]
        size = tl.load(theta + column, mask=real, other=1.0)[None, :]
        zero = tl.zeros((ROWS, COLS), dtype=tl.float32)
        u, before, n, sent = zero + start * size, zero, zero, zero
        if CONSTANT:
            x = tl.load(y + at, mask=exists, other=0.0)
        else:
            other = tl.load(residual_theta + column, mask=real, other=0.0)[None, :]
            scale = tl.load(gamma + column, mask=real, other=0.0)[None, :]
            shift = tl.load(beta + column, mask=real, other=0.0)[None, :]
        for t in range(STEPS):
            if not CONSTANT:
                back = tl.load(residual + wide, mask=exists, other=0).to(tl.float32)
                z = tl.load(y + wide, mask=exists, other=0.0) + back * (other * tl.load(units + t))
                middle = tl.sum(z, axis=1) / columns
                z = tl.where(exists, z - middle[:, None], 0.0)
                spread = tl.sqrt(tl.sum(z * z, axis=1) / columns + eps)
                x = z / spread[:, None] * scale + shift
                y += rows.to(tl.int64) * width
                residual += rows.to(tl.int64) * width
            out, s, u, before, n = fire(x, t, u, before, n, size, leak, total, TERNARY, MODE, LEAKS, CONSTANT)
            tl.store(train + wide, tl.where(exists, out, 0), mask=stored)
            train += rows.to(tl.int64) * width
            sent = leak * sent + s
        if VALUE:
            tl.store(value + at, size * (sent / norm), mask=exists)

    @triton.jit(do_not_specialize=["tokens"])
    def attention_scan(
        q, pair, key_theta, value_theta, units, real, bias, theta, kept, train,
        tokens, heads, q_width, width, factor, leak, start, total,
        STEPS: tl.constexpr, BLOCKS: tl.constexpr, MODE: tl.constexpr, TERNARY: tl.constexpr, LEAKS: tl.constexpr,
        BIASED: tl.constexpr, SIZE: tl.constexpr,
        BM: tl.constexpr, BN: tl.constexpr,
    ):  # fmt: skip
        """Queries q `[S, B N, q_width]` float32, trains of keys and values beside each other, pair `[S, B N, 2 width]`
        -> the context's train `[S, B N, width]`. Real tokens `[B, N]` as bytes; factor: `log2 e / sqrt d`. BIASED: the
        scores' bias `[H, N, N]` float32, in units of log2 e."""
        sentence, head = tl.program_id(0) // heads, tl.program_id(0) % heads
        row = tl.program_id(1) * BM + tl.arange(0, BM)
        channel = head * SIZE + tl.arange(0, SIZE)
        first = sentence.to(tl.int64) * tokens
        rows = tl.num_programs(0) // heads * tokens
        exists = (row < tokens)[:, None]
        q += first * q_width + (row[:, None] * q_width + channel[None, :])
        train += first * width + (row[:, None] * width + channel[None, :])
        pair += first * 2 * width
        bias += (head * tokens + row[:, None]) * tokens
        place = tl.arange(0, BN)
        key_size = tl.load(key_theta + channel)[None, :] * factor
        value_size = tl.load(value_theta + channel)[None, :]
        size, alive = tl.load(theta + channel)[None, :], tl.load(kept + channel)[None, :] != 0
        zero = tl.zeros((BM, SIZE), dtype=tl.float32)
        u, before, n = zero + start * size, zero, zero
        for t in range(STEPS):
            unit = tl.load(units + t)
            x = tl.load(q, mask=exists, other=0.0) * key_size
            most = tl.maximum(tl.max(tl.abs(x), axis=1), 1e-30)
            x = x * (16384.0 / most)[:, None]
            upper = x.to(tl.float16)
            lower = (x - upper.to(tl.float32)).to(tl.float16)
            back = most * (unit / 16384.0)
            top = tl.full((BM,), -1e30, dtype=tl.float32)
            whole = tl.zeros((BM,), dtype=tl.float32)
            mixed = tl.zeros((BM, SIZE), dtype=tl.float32)
            for j in range(BLOCKS):
                token = j * BN + place
                there = token < tokens
                counts = tl.load(real + first + token, mask=there, other=0) != 0
                k = tl.load(pair + token[None, :] * (2 * width) + channel[:, None], mask=there[None, :], other=0)
                k = k.to(tl.float16)
                scores = tl.dot(lower, k)
                scores = tl.dot(upper, k, scores) * back[:, None]
                if BIASED:
                    scores += tl.load(bias + token[None, :], mask=exists & there[None, :], other=0.0)
                scores = tl.where(counts[None, :], scores, -float("inf"))
                now = tl.maximum(top, tl.max(scores, axis=1))
                p = tl.exp2(scores - now[:, None] + 14.0)
                left = tl.exp2(top - now)
                whole = whole * left + tl.sum(p, axis=1)
                more = p.to(tl.float16)
                less = (p - more.to(tl.float32)).to(tl.float16)
                v = tl.load(
                    pair + width + token[:, None] * (2 * width) + channel[None, :], mask=there[:, None], other=0
                ).to(tl.float16)
                mixed = tl.dot(less, v, mixed * left[:, None])
                mixed = tl.dot(more, v, mixed)
                top = now
            y = mixed / whole[:, None] * (value_size * unit)
            out, s, u, before, n = fire(y, t, u, before, n, size, leak, total, TERNARY, MODE, LEAKS, False)
            tl.store(train, tl.where(alive, out, 0), mask=exists)
            q += rows.to(tl.int64) * q_width
            pair += rows.to(tl.int64) * 2 * width
            train += rows.to(tl.int64) * width

    @triton.jit(do_not_specialize=["tokens"])
    def spike_counts(
        train, real, counts, tokens, width, columns, BATCH,
        BLOCKS: tl.constexpr, RUNNING: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    ):  # fmt: skip
        """Spikes of either sign on real tokens, `[S, B, columns]` float32, of a train `[S, B N, width]`; RUNNING: it
        holds counts so far."""
        t, sentence = tl.program_id(0) // BATCH, tl.program_id(0) % BATCH
        column = tl.program_id(1) * COLS + tl.arange(0, COLS)
        inside = column < columns
        step = (BATCH * tokens).to(tl.int64) * width
        train += t * step + sentence.to(tl.int64) * tokens * width + column[None, :]
        fired = tl.zeros((COLS,), dtype=tl.int32)
        for j in range(BLOCKS):
            token = j * ROWS + tl.arange(0, ROWS)
            there = token < tokens
            counted = tl.load(real + sentence * tokens + token, mask=there, other=0).to(tl.int32)[:, None]
            at = train + token[:, None] * width
            n = tl.load(at, mask=there[:, None] & inside[None, :], other=0).to(tl.int32)
            if RUNNING:
                n -= tl.load(at - step, mask=there[:, None] & inside[None, :] & (t > 0), other=0).to(tl.int32)
            fired += tl.sum(tl.abs(n) * counted, axis=0)
        tl.store(counts + tl.program_id(0).to(tl.int64) * columns + column, fired.to(tl.float32), mask=inside)


def normed(
    y: Tensor,
    residual: Tensor,
    residual_theta: Tensor,
    units: Tensor,
    norm: torch.nn.LayerNorm,
    neurons: Firing,
    *,
    steps: int,
    asr_norm: float,
    value: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """The train `[steps, rows, width]` of neurons that are driven by the layer norm of currents `y [S, rows, width]`
    plus a `residual` train, in units of `residual_theta [D]` and `units [S]`; with `value`, theta times their ASR
    `[rows, D]` too. `asr_norm`: the sum of the steps' weights in the ASR."""
    (_, rows, width), columns = residual.shape, norm.weight.numel()
    train = y.new_empty(steps, rows, width, dtype=torch.int8)
    values = y.new_empty(rows, columns) if value else None
    inputs = (residual, residual_theta, units, norm.weight.detach(), norm.bias.detach())
    _norm_scan(y, inputs, neurons, train, values, columns, eps=norm.eps, asr_norm=asr_norm, constant=False)
    return train, values


def constant(y: Tensor, neurons: Firing, *, steps: int, width: int, asr_norm: float) -> tuple[Tensor, Tensor]:
    """Train `[steps, rows, width]` and theta times ASR `[rows, D]` of neurons under the constant currents `y`."""
    rows, columns = y.shape
    train, values = y.new_empty(steps, rows, width, dtype=torch.int8), torch.empty_like(y)
    unread = (neurons.theta,) * 5
    _norm_scan(y, unread, neurons, train, values, columns, eps=0.0, asr_norm=asr_norm, constant=True)
    return train, values


def _norm_scan(
    y: Tensor,
    inputs: tuple[Tensor, ...],
    neurons: Firing,
    train: Tensor,
    values: Tensor | None,
    columns: int,
    *,
    eps: float,
    asr_norm: float,
    constant: bool,
) -> None:
    """Launch `norm_scan`, which writes `train` and, if given, `values`."""
    steps, rows, width = train.shape
    block = power_of_2(max(width, 16))
    tile_rows = max(1, 1024 // block)
    with torch.cuda.device_of(y):
        norm_scan[(-(-rows // tile_rows),)](
            y, *inputs, neurons.theta, train, neurons.theta if values is None else values,
            rows, columns, width, eps, neurons.leak, neurons.start, neurons.total, asr_norm,
            STEPS=steps, MODE=neurons.mode, TERNARY=neurons.ternary, LEAKS=neurons.leak != 1.0, CONSTANT=constant,
            VALUE=values is not None, ROWS=tile_rows, COLS=block, num_warps=4 if block <= 1024 else 8,
            enable_fp_fusion=False,
        )  # fmt: skip


def power_of_2(least: int) -> int:
    """The smallest power of two that is at least `least`. Triton's own takes ten times as long, at every launch."""
    return 1 << (least - 1).bit_length()


def attended(
    q: Tensor, pair: Tensor, key_theta: Tensor, value_theta: Tensor, units: Tensor, tokens: Tensor, neurons: Firing,
    *, steps: int, heads: int, size: int, bias: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The context's train `[steps, B N, width]`: queries `q [S, B N, …]`, keys and values `pair [S, B N, 2 width]`,
    real `tokens [B, N]`; `size`: channels of a head; `bias [heads, N, N]` of the scores, if any."""
    (sentences, n), width = tokens.shape, pair.shape[-1] // 2
    # zeros beyond the last head
    train = (torch.empty if width == heads * size else torch.zeros)(
        steps, sentences * n, width, dtype=torch.int8, device=q.device
    )
    whole, most = power_of_2(max(n, 16)), 128 if size < 128 else 64  # of the chip's shared memory
    tile = {"BM": min(64, whole), "BN": min(most, whole)}
    with torch.cuda.device_of(q):
        attention_scan[(sentences * heads, -(-n // tile["BM"]))](
            q, pair, key_theta, value_theta, units, tokens.contiguous().view(torch.uint8),
            neurons.theta if bias is None else (bias * math.log2(math.e)).contiguous(),
            neurons.theta, neurons.kept, train,
            n, heads, q.shape[-1], width, math.log2(math.e) / math.sqrt(size),
            neurons.leak, neurons.start, neurons.total, STEPS=steps, BLOCKS=-(-n // tile["BN"]),
            MODE=neurons.mode, TERNARY=neurons.ternary, LEAKS=neurons.leak != 1.0, BIASED=bias is not None, SIZE=size,
            **tile,
            num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
    return train


def counted(train: Tensor, tokens: Tensor, columns: int, *, running: bool) -> Tensor:
    """Spikes on real `tokens [B, N]`, `[S, B, columns]` float32."""
    (sentences, n), steps = tokens.shape, len(train)
    counts = torch.empty(steps, sentences, columns, device=train.device)
    tile = {"ROWS": 32, "COLS": 128}
    with torch.cuda.device_of(train):
        spike_counts[(steps * sentences, -(-columns // tile["COLS"]))](
            train, tokens.contiguous().view(torch.uint8), counts, n, train.shape[-1], columns, sentences,
            BLOCKS=-(-n // tile["ROWS"]), RUNNING=running, **tile,
        )  # fmt: skip
    return counts
