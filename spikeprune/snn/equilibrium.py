"""A spiking layer at equilibrium: the modes that take no time steps. Operations as in `call.py`.

In `accumulate` every spiking layer is driven by a constant current, so its ASR and its number of spikes follow from
that current alone: an evaluation costs one matrix product per layer, whatever T is. A LIF neuron has no closed form;
its T element-wise steps are taken, but no train is stored.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from spikeprune.snn.call import LayerCall, LayerOutput
from spikeprune.snn.context import SpikeTrain
from spikeprune.snn.neurons import Equilibrium, Neuron, leak_weights, settle, steps

BLOCK = 2**20  # numbers (4 MiB): what a third-level cache holds, and enough work for a second core


def clip(call: LayerCall) -> LayerOutput:
    """Exact rates, as for T -> infinity: the current, clipped to what the neurons can send."""
    return LayerOutput(SpikeTrain(call.drive.mean.clamp(call.neuron.low * call.theta, call.neuron.high * call.theta)))


def equilibrium(call: LayerCall) -> LayerOutput:
    """Rates of T levels, with the gradient of the equilibrium (see `neurons.Equilibrium`)."""
    y, theta = call.drive.mean, call.theta
    a = settle(y.detach(), theta.detach(), call.t_steps, call.neuron, call.leak)
    return LayerOutput(SpikeTrain(Equilibrium.apply(y, theta, a, call.neuron.low, call.neuron.high)))


def closed_form(call: LayerCall) -> LayerOutput:
    """The same rates without gradient, mask included, and the spikes of each whole train."""
    ctx = call.ctx
    value, counts = settled_value(
        call.drive.mean,
        call.theta,
        call.t_steps,
        call.neuron,
        call.leak,
        mask=call.mask,
        tokens=ctx.tokens if ctx.count else None,
    )
    return LayerOutput(SpikeTrain(value), masked=True, counts=counts, first_counts=first_token_totals(call))


def first_token_totals(call: LayerCall) -> Tensor | None:
    """Spikes of the first token's whole train `[1, B, D]`; None where they are not counted."""
    if not (call.ctx.count and call.count_first):
        return None
    first = torch.ones_like(call.ctx.tokens[:, :1])
    y = call.drive.mean[:, :1]
    return settled_value(y, call.theta, call.t_steps, call.neuron, call.leak, mask=None, tokens=first)[1]


def blocks(x: Tensor) -> Iterator[slice]:
    """Slices over the samples of `x [B, N, D]`: on the CPU of what the cache holds, elsewhere of all at once."""
    size = len(x) if x.device.type != "cpu" else max(1, BLOCK // max(1, x[0].numel())) if len(x) else 1
    for start in range(0, len(x), max(1, size)):
        yield slice(start, start + size)


def tokens_sum(x: Tensor, tokens: Tensor) -> Tensor:
    """`x [B, N, D]` summed over real tokens, `tokens [B, N]` -> `[B, D]`."""
    return torch.bmm(tokens.to(x.dtype)[:, None], x)[:, 0]


@torch.no_grad()
def settled_value(
    x: Tensor, theta: Tensor, t_steps: int, neuron: Neuron, leak: float, mask: Tensor | None, tokens: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """`theta * ASR * mask [B, N, D]` after T steps of the constant current `x [B, N, D]`, and spikes `[1, B, D]`.

    The value is `theta * settle(x, …)` bit for bit. The spikes, of either sign, are those of the whole train on real
    `tokens [B, N]`, before the mask; None without tokens. `theta [D]` or `[1]`; `mask` broadcasts to x.
    """
    value = torch.empty_like(x)
    counts = None if tokens is None else x.new_empty(1, x.shape[0], x.shape[2])
    size = theta if mask is None else theta * mask  # a mask is 0 or 1, so this rounds nothing
    for rows in blocks(x):
        fired, a = totals(x[rows], theta, t_steps, neuron, leak, counts is not None)
        if counts is not None:
            counts[0, rows] = tokens_sum(fired, tokens[rows])
        torch.mul(a, size[rows] if size.dim() == 3 else size, out=value[rows])
    return value, counts


def totals(
    x: Tensor, theta: Tensor, t_steps: int, neuron: Neuron, leak: float, count: bool
) -> tuple[Tensor | None, Tensor]:
    """Spikes of either sign after T steps (None unless `count`) and the ASR, both like the constant current `x`.

    Under a constant current an IF neuron's spikes all have one sign, so their number is the size of their sum.
    """
    if leak == 1.0 and neuron.settled is not None:
        n = neuron.settled(x / theta, t_steps)
        return n.abs() if count else None, n.div_(t_steps)
    weights = leak_weights(t_steps, leak).tolist()
    fired, a = torch.zeros_like(x) if count else None, torch.zeros_like(x)
    for weight, s in zip(weights, steps((x for _ in weights), theta, neuron, leak), strict=True):
        a.add_(s, alpha=weight)
        if fired is not None:
            fired += s.abs_()
    return fired, a.div_(sum(weights))
