"""The Triton backend of a network and of its spiking layers: which kernel computes what.

| operation (`snn.call`) | kernel | covers |
|---|---|---|
| equilibrium | `equilibrium.fused_equilibrium` | IF |
| closed_form | `scan.fused_totals` | IF, masks per channel |
| simulation | `scan.fused_scan` | IF and LIF, masks per channel, no trace |
| a whole encoder without gradient | `encoder.encode` | see `encoder.covers` |

All of them: binary and ternary neurons, in float32 on CUDA. The rest is computed by the torch reference.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from spikeprune.kernels import encoder, equilibrium, scan
from spikeprune.models.modeling import SpikingBert
from spikeprune.snn.call import Encoded, LayerCall, LayerOutput
from spikeprune.snn.context import ForwardContext, SpikeTrain
from spikeprune.snn.equilibrium import first_token_totals
from spikeprune.snn.simulation import measured_value


@dataclass(frozen=True)
class TritonLayers:
    """`snn.call.LayerBackend` of one spiking layer."""

    def covers(self, call: LayerCall) -> bool:
        if call.operation == "equilibrium":
            return equilibrium.covers(call.drive.mean, call.kind, call.leak)
        if call.operation == "closed_form":
            return call.leak == 1.0 and scan.covers(call.drive.mean, call.kind, "accumulate", call.mask)
        if call.operation == "simulation":
            gated = call.gate is not None and call.coding_name == "running_mean"  # its pulses are not kept
            return not call.ctx.trace and not gated and scan.covers(call.theta, call.kind, call.coding_name, call.mask)
        return False

    def run(self, call: LayerCall) -> LayerOutput:
        return OPERATIONS[call.operation](call)


@dataclass(frozen=True)
class TritonBackend:
    """`snn.call.Backend` of a network."""

    layers: TritonLayers = TritonLayers()

    def covers(self, network: SpikingBert, ctx: ForwardContext) -> bool:
        return encoder.covers(network, ctx)

    def run(self, network: SpikingBert, input_ids: Tensor, token_type_ids: Tensor, *, ctx: ForwardContext) -> Encoded:
        return encoder.encode(network, input_ids, token_type_ids, ctx=ctx)


def settle(call: LayerCall) -> LayerOutput:
    """`snn.equilibrium.equilibrium`, with rates and a mask per channel; masks of each sample are left to the layer."""
    shares = call.ctx.shares if call.ctx.rate else None
    mask = call.mask if call.mask is not None and call.mask.dim() == 1 else None
    value, rates = equilibrium.fused_equilibrium(call.drive.mean, call.theta, call.t_steps, call.kind, mask, shares)
    return LayerOutput(SpikeTrain(value), masked=mask is not None, rates=rates)


def total(call: LayerCall) -> LayerOutput:
    """`snn.equilibrium.closed_form`."""
    tokens = call.ctx.tokens if call.ctx.count else None
    value, counts = scan.fused_totals(call.drive.mean, call.theta, call.t_steps, call.kind, call.mask, tokens)
    return LayerOutput(SpikeTrain(value), masked=True, counts=counts, first_counts=first_token_totals(call))


def simulate(call: LayerCall) -> LayerOutput:
    """`snn.simulation.simulate`, with the membranes of all steps in one kernel."""
    constant, wants_grad = call.drive.steps is None, torch.is_grad_enabled()
    takes_means, readers_see = scan.READS[call.coding_name]
    seen = "pulses" if readers_see and call.sends_pulses else readers_see
    with torch.no_grad():
        y = call.drive.mean if constant else call.drive.steps
        how = {"theta": call.theta, "t_steps": call.t_steps, "kind": call.kind, "leak": call.leak}
        fire = partial(scan.fused_scan, **how, wrapped=takes_means and not constant)
        tokens = call.ctx.tokens if call.ctx.count else None
        done, first = fire(y, seen=seen, mask=call.mask, tokens=tokens, mean=wants_grad), None
        if call.ctx.count and call.count_first:
            first = fire(y[..., :1, :], tokens=torch.ones_like(tokens[:, :1])).counts
    train = SpikeTrain(measured_value(call, done.a, done.mean), **({} if seen is None else {seen: done.seen}))
    return LayerOutput(train, counts=done.counts, first_counts=first)


OPERATIONS = {"equilibrium": settle, "closed_form": total, "simulation": simulate}
