"""A spiking layer step by step. Operations as in `call.py`.

A simulation has no gradient of its own: its value is the measured ASR, with the gradient of the equilibrium.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spikeprune.snn.call import LayerCall, LayerOutput
from spikeprune.snn.coding import drive_constant, read_running_mean
from spikeprune.snn.context import SpikeTrain
from spikeprune.snn.equilibrium import blocks, tokens_sum
from spikeprune.snn.neurons import Equilibrium, leak_weights, steps


def simulate(call: LayerCall) -> LayerOutput:
    """T steps of every neuron. The mask is in the pulses, not yet in the value."""
    ctx, theta, t_steps = call.ctx, call.theta, call.t_steps
    weights, wants_grad = leak_weights(t_steps, call.leak).tolist(), torch.is_grad_enabled()
    with torch.no_grad():
        x = input_currents(call)  # [T, B, N, D]
        pulses = None if call.coding.stationary and not ctx.trace else torch.empty_like(x)
        counts = x.new_empty(t_steps, x.shape[1], x.shape[3]) if ctx.count else None  # [T, B, D]
        first = torch.empty_like(counts) if ctx.count and call.count_first else None
        a, mean = torch.zeros_like(x[0]), torch.zeros_like(x[0])  # [B, N, D]
        for rows in blocks(a):
            for t, s in enumerate(steps(x[:, rows], theta, call.neuron, call.leak)):
                a[rows].add_(s, alpha=weights[t])
                if wants_grad:
                    mean[rows].add_(x[t, rows], alpha=weights[t])
                if pulses is not None:
                    torch.mul(theta, s, out=pulses[t, rows])
                if counts is not None:
                    counts[t, rows] = tokens_sum(s.abs(), ctx.tokens[rows])
                if first is not None:
                    first[t, rows] = s[:, 0].abs()
        a, mean = a / sum(weights), mean / sum(weights)
        trace = settling(pulses / theta, ctx.tokens, call.leak, call.alive) if ctx.trace else None
        if pulses is not None and call.mask is not None:
            pulses.mul_(call.mask)
    train = SpikeTrain(measured_value(call, a, mean), pulses)
    return LayerOutput(train, counts=counts, first_counts=first, trace=trace)


def input_currents(call: LayerCall) -> Tensor:
    """What drives the neurons at each step `[T, B, N, D]`."""
    if call.drive.steps is None:
        return drive_constant(call.drive.mean.detach()[None], call.t_steps, call.leak)
    return call.coding.drive(call.drive.steps, call.t_steps, call.leak)


def measured_value(call: LayerCall, a: Tensor, mean: Tensor | None) -> Tensor:
    """`theta * a` of the measured ASR `a [B, N, D]`; its gradient, where one is wanted, is that of the equilibrium at
    the measured `mean [B, N, D]` of the input current."""
    if not torch.is_grad_enabled():
        return call.theta * a
    # the clip is judged at the measured mean current, which in per_step is not f of the inputs' mean values
    y, theta = call.drive.mean, call.log_theta.exp()  # the rates' gradient reaches log(theta) by a path of its own
    return Equilibrium.apply(y + (mean - y).detach(), theta, a, call.neuron.low, call.neuron.high)


def settling(spikes: Tensor, tokens: Tensor, leak: float, alive: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """How fast the ASR settles: sums over real tokens and channels (`alive` ones, if given) of |a[t] - a[T]|, `[T]`,
    and of |a[T]|, scalar, from `spikes [T, B, N, D]`."""
    a = read_running_mean(spikes, len(spikes), leak)
    weights = tokens[..., None].to(a.dtype) * (1.0 if alive is None else alive)
    return ((a - a[-1]).abs() * weights).flatten(1).sum(1), (a[-1].abs() * weights).sum()
