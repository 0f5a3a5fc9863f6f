"""The fused encoder: embedding and layers of a student on the tensor cores, with integers between its layers.

`encode` replaces `SpikingBert.encode`, all layers and spiking layers included, where `covers` is true: on a GPU,
without gradient, for the closed form and for the simulation of the synchronous codings. Per layer it launches: one
product for query, key and value, with the neurons of the latter two; attention with the context's neurons; a product
and a layer norm with neurons; a product, gelu and neurons; a product and a layer norm with neurons. Between them spikes
or their counts travel as bytes (see `split_integer.py`). `weight_cache.py` keeps weights, thresholds and masks in the
format that the kernels read. The embedding's current and the logits are computed by the student itself.

The arithmetic is float32's or better, but not bit for bit that of the torch path: sums of spikes are exact here. A
current within rounding of its threshold may fire on one side only.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import gelu
from transformers.activations import GELUActivation

from spikeprune.kernels import split_integer
from spikeprune.kernels.equilibrium import KINDS
from spikeprune.kernels.firing import CLOSED, GELU, PER_STEP, RUNNING, Firing
from spikeprune.kernels.norm_attention import attended, constant, counted, normed
from spikeprune.kernels.split_integer import MOST, padded
from spikeprune.kernels.weight_cache import cached_weights
from spikeprune.models.layers import EncoderLayer
from spikeprune.models.modeling import SpikingBert
from spikeprune.snn.call import Encoded
from spikeprune.snn.context import ForwardContext, SpikeTrain
from spikeprune.snn.neurons import leak_weights

MODES = {"per_step": PER_STEP, "running_mean": RUNNING}
HEAD_SIZES = (16, 32, 64, 128)  # that make a tile of attention
WIDEST = 4096  # most channels of a row that layer norm keeps in registers


def covers(student: SpikingBert, ctx: ForwardContext) -> bool:
    """Whether `encode` computes this forward; else each spiking layer is computed by itself.

    It does without gradient and autocast, in float32 on CUDA, where nothing but values and counts is wanted, of an
    architecture that is `supported`: the closed form of IF neurons, and the simulation in `per_step` or (IF)
    `running_mean` where no layer fires longer than the one below it; trains that hold counts up to MOST steps.
    """
    neurons, steps = student.embedding.neurons, student.steps
    more = ctx.rate or ctx.trace or ctx.scores or ctx.pulses or ctx.dead_zone_percentile is not None
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cuda") or more:
        return False
    if not on_cuda(student.classifier.weight):
        return False
    if ctx.mode == "equilibrium":
        timed = neurons.leak == 1.0 and max(steps) <= MOST
    elif ctx.mode == "spiking" and student.coding in MODES:
        longest = MOST if student.coding == "running_mean" else float("inf")
        timed = all(a >= b for a, b in zip(steps, steps[1:], strict=False)) and max(steps) <= longest
        timed = timed and (neurons.leak == 1.0 or student.coding == "per_step")
    else:
        return False
    return timed and neurons.kind in KINDS and supported(student)


def on_cuda(like: Tensor) -> bool:
    return like.is_cuda and like.dtype == torch.float32


def supported(student: SpikingBert) -> bool:
    """Whether the kernels compute an architecture such as this student's."""
    layers, values = student.layers, student.values
    plain = student.query == "real" and student.embedding.feedback is None and not values["dead_zone"]
    plain = plain and values["residual"] == "spikes"
    plain = plain and all(layer.act is gelu or isinstance(layer.act, GELUActivation) for layer in layers)
    sized = values["hidden"] <= WIDEST and values["hidden"] // values["heads"] in HEAD_SIZES
    return plain and sized and all(layer.heads and layer.ffn for layer in layers)


@cache
def units(mode: int, steps: int, total: int, device: torch.device) -> Tensor:
    """The share of theta that a 1 in a train stands for at each step `[S]`; its neurons fire for `total` steps."""
    by_mode = {PER_STEP: [1.0] * steps, RUNNING: [1.0 / t for t in range(1, steps + 1)], CLOSED: [1.0 / total]}
    return torch.tensor(by_mode[mode], device=device)


@cache
def asr_norm(steps: int, leak: float) -> float:
    return float(leak_weights(steps, leak).sum())


def encode(student: SpikingBert, input_ids: Tensor, token_type_ids: Tensor, *, ctx: ForwardContext) -> Encoded:
    """As `SpikingBert.encode`, for a forward that is covered. Shapes: S steps of a train, 1 in closed form; M = B N
    tokens; channels of a train are padded to a multiple of PAD."""
    closed, tokens = ctx.mode == "equilibrium", ctx.tokens
    mode = CLOSED if closed else MODES[student.coding]
    weights, (total, *totals) = cached_weights(student, mode != PER_STEP), student.steps
    neurons, shape = student.embedding.neurons, (*input_ids.shape, student.values["hidden"])  # [B, N, D]

    def firing(theta_and_kept: tuple[Tensor, Tensor], t_steps: int) -> Firing:
        ternary, start = neurons.kind == "ternary", neurons.neuron.start
        return Firing(*theta_and_kept, mode, ternary, neurons.leak, start, float(t_steps))

    # the names of the formulas in `modeling.py`: a, k, v, c, h, f are trains, q and y currents in float32
    current = student.embedding.current(input_ids, token_type_ids).flatten(0, 1)  # [M, D]
    a, value = constant(
        current,
        firing(weights.embedding, total),
        steps=1 if closed else total,
        width=padded(shape[-1]),
        asr_norm=asr_norm(total, neurons.leak),
    )  # [S, M, D], [M, D]
    if ctx.count:
        counts = counted(a, tokens, a.shape[-1], running=mode == RUNNING)
        ctx.record.add("embedding", counts=counts[..., : shape[-1]])
    hidden, theta, below = [value.view(shape)], weights.embedding[0], total  # theta and steps of the train a
    biases = [None] * len(totals) if student.relative_bias is None else student.relative_bias(ctx.padding)
    for layer, own, t, bias in zip(student.layers, weights.layers, totals, biases, strict=True):
        steps, norm, width = 1 if closed else t, asr_norm(t, neurons.leak), padded(layer.heads * layer.head_size)
        unit, unit_below = units(mode, steps, t, current.device), units(mode, steps, below, current.device)
        # q = Wq a, k = spike(Wk a), v = spike(Wv a): [S, M, width], [S, M, 2 width]
        q, kv = split_integer.product(a, own.qkv, unit_below, steps=steps, reals=width, neurons=firing(own.kv, t))
        # c = spike(softmax(q k^T / sqrt d + bias + mask) v): [S, M, width]
        key_theta, value_theta = own.kv[0][width : 2 * width], own.kv[0][2 * width :]
        context = firing(own.context, t)
        c = attended(
            *(q, kv, key_theta, value_theta, unit, tokens, context),
            steps=steps,
            heads=layer.heads,
            size=layer.head_size,
            bias=None if bias is None else bias.scores,
        )
        # h = spike(LN(Wo c + a)): [S, M, D]
        y, _ = split_integer.product(c, own.out, unit, steps=steps, reals=own.out.codes.shape[1])
        attention = firing(own.attention, t)
        h, _ = normed(y, a, theta, unit_below, layer.attention_norm, attention, steps=steps, asr_norm=norm)
        # f = spike(gelu(W1 h)): [S, M, F]
        intermediate = firing(own.intermediate, t)
        _, f = split_integer.product(h, own.up, unit, steps=steps, reals=0, neurons=intermediate, activation=GELU)
        # a' = spike(LN(W2 f + h)): [S, M, D]
        y, _ = split_integer.product(f, own.down, unit, steps=steps, reals=own.down.codes.shape[1])
        output, theta_h = firing(own.output, t), own.attention[0]
        a, value = normed(
            y, h, theta_h, unit, layer.output_norm, output, steps=steps, asr_norm=norm, value=True
        )  # [S, M, D], [M, D]
        if ctx.count:
            record_counts(ctx, layer, mode == RUNNING, kv=kv, context=c, attention=h, intermediate=f, output=a)
        hidden.append(value.view(shape))
        theta, below = own.output[0], t
    return SpikeTrain(hidden[-1]), hidden, [None] * len(totals)


def record_counts(ctx: ForwardContext, layer: EncoderLayer, running: bool, *, kv: Tensor, **trains: Tensor) -> None:
    """Record the spikes of an encoder layer's trains `[S, B N, padded channels]`, by the names of their neurons; `kv`:
    keys and values side by side, counted together."""

    def count(train: Tensor) -> Tensor:
        return counted(train, ctx.tokens, train.shape[-1], running=running)  # [S, B, padded channels]

    counts = dict(zip(("key", "value"), count(kv).chunk(2, -1), strict=True))
    counts |= {name: count(train) for name, train in trains.items()}
    for name, spikes in counts.items():
        neurons = getattr(layer, f"{name}_neurons")
        ctx.record.add(neurons.name, counts=spikes[..., : neurons.channels])
    if layer.output_neurons.count_first:
        train = trains["output"]
        rows = train.view(len(train), *ctx.tokens.shape, -1)[:, :, 0, : layer.output_neurons.channels]
        ctx.record.add(layer.output_neurons.name, first_counts=first_token_counts(rows, running))


def first_token_counts(train: Tensor, running: bool) -> Tensor:
    """Spikes of the first token, `[S, B, D]`, from its `train` of the same shape. `running`: it holds counts so far."""
    spikes = train.float()
    if running:
        spikes = spikes.diff(dim=0, prepend=torch.zeros_like(spikes[:1]))
    return spikes.abs()
