"""A spiking layer at equilibrium: the modes that take no time steps. Operations as in `call.py`."""

from __future__ import annotations

import torch

from spikeprune.snn.call import LayerCall, LayerOutput
from spikeprune.snn.closed_form import settled_value
from spikeprune.snn.context import SpikeTrain
from spikeprune.snn.neurons import Equilibrium, settle


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


def first_token_totals(call: LayerCall) -> torch.Tensor | None:
    """Spikes of the first token's whole train `[1, B, D]`; None where they are not counted."""
    if not (call.ctx.count and call.count_first):
        return None
    first = torch.ones_like(call.ctx.tokens[:, :1])
    y = call.drive.mean[:, :1]
    return settled_value(y, call.theta, call.t_steps, call.neuron, call.leak, mask=None, tokens=first)[1]
