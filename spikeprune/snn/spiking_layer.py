"""A spiking layer: a non-linear step f of the network followed by a layer of spiking neurons.

`SpikingLayer.forward` evaluates f, and has the neurons' response computed by the operation that the forward's mode
needs (the table in `call.py`): by the attached backend where that covers it, else by the torch reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from spikeprune.errors import known
from spikeprune.snn.adaptive_threshold import gains_of, in_units_of, times_gain
from spikeprune.snn.call import Drive, LayerBackend, LayerCall, LayerOutput, StepGate
from spikeprune.snn.coding import CODINGS
from spikeprune.snn.context import ForwardContext, Recorder, SpikeTrain
from spikeprune.snn.dead_zone import DeadZone
from spikeprune.snn.equilibrium import clip, closed_form, equilibrium
from spikeprune.snn.neurons import ACTIVATIONS, asr, simulable
from spikeprune.snn.simulation import simulate

OPERATIONS: dict[str, Callable[[LayerCall], LayerOutput]] = {
    "clip": clip,
    "equilibrium": equilibrium,
    "closed_form": closed_form,
    "simulation": simulate,
}


class SpikingLayer(nn.Module):
    """`spike(f(inputs))` under one of the codings; `theta` is learnt through its logarithm, so it stays positive.

    Args:
        name: under which measurements are recorded, such as `layers.0.key`.
        channels: D, the number of neurons.
        neuron, coding: keys of ACTIVATIONS and CODINGS; `leak`: of the membrane, 1 for IF.
        theta: a threshold per `channel`, or one per `tensor`.
        groups: parts of the channels, over each of which an adaptive threshold takes its own gain.
        dead_zone: whether currents too small to matter are dropped (see `dead_zone.py`).

    Raises ValueError for an unknown name. `backend` is no part of the architecture: it may be set any time.
    """

    backend: LayerBackend | None = None

    def __init__(
        self,
        name: str,
        channels: int,
        *,
        neuron: str,
        leak: float,
        coding: str,
        theta: str,
        groups: int = 1,
        dead_zone: bool = False,
    ):
        super().__init__()
        known("spikes", neuron, ACTIVATIONS)
        known("coding", coding, CODINGS)
        known("theta", theta, ("channel", "tensor"))
        self.name, self.channels, self.leak, self.groups = name, channels, leak, groups
        self.kind, self.neuron = neuron, ACTIVATIONS[neuron]
        self.coding_name, self.coding = coding, CODINGS[coding]
        self.count_first = False  # count the first token's spikes separately too
        self.sends_pulses = False  # its train itself is read, whatever the coding reads
        self.shows_current = False  # a membrane shortcut reads its current, `SpikeTrain.driven_by`
        self.log_theta = nn.Parameter(torch.zeros(channels if theta == "channel" else min(channels, 1)))
        self.dead_zone = DeadZone(channels) if dead_zone else None

    @property
    def theta(self) -> Tensor:
        """`[D]` per channel or `[1]` per tensor; `[0]` in a layer of no channels."""
        return self.log_theta.exp()

    def forward(
        self,
        f: Callable[..., Tensor],
        *inputs: SpikeTrain,
        t_steps: int,
        ctx: ForwardContext,
        mask: Tensor | None = None,
        y: Tensor | None = None,
        alive: Tensor | None = None,
        gate: StepGate | None = None,
    ) -> SpikeTrain:
        """Fire for `t_steps` on the current `f(*inputs)`, and record what `ctx` asks for.

        Args:
            f: maps tensors `[..., B, N, D_in]` to `[..., B, N, D]`. Without inputs, `f()` is a constant current.
            mask: `[D]` or `[B, 1, D]`, 0 silences a pruned channel.
            y: f of the inputs' mean values `[B, N, D]`, where the caller has it already.
            alive: `[D]`, the channels that are read, where `mask` does not tell: rates, traces and gains are of these.
            gate: of the train's last steps.

        Raises ValueError for a simulation of more steps than `neurons.LONGEST`.
        """
        alive = mask if alive is None else alive
        if ctx.mode == "spiking":
            simulable(t_steps)
        drive = self.evaluate(f, inputs, t_steps, ctx, y)
        gains = None if self.neuron.gain is None else gains_of(drive, self.neuron.gain, self.groups, alive)
        relative = drive if gains is None else in_units_of(drive, gains)
        if ctx.mode == "calibrate":
            self.calibrate(relative.mean, ctx.tokens, ctx.percentile, alive)
        call = LayerCall(
            kind=self.kind,
            neuron=self.neuron,
            leak=self.leak,
            coding_name=self.coding_name,
            coding=self.coding,
            log_theta=self.log_theta,
            t_steps=t_steps,
            drive=relative,
            mask=mask,
            alive=alive,
            gate=gate,
            count_first=self.count_first,
            sends_pulses=self.sends_pulses,
            ctx=ctx,
        )
        train = self.fire(call)
        if gains is not None:
            train = times_gain(train, gains, self.coding, self.leak)
        return replace(train, driven_by=self.shown_current(drive, ctx)) if self.shows_current else train

    def evaluate(
        self,
        f: Callable[..., Tensor],
        inputs: tuple[SpikeTrain, ...],
        t_steps: int,
        ctx: ForwardContext,
        y: Tensor | None,
    ) -> Drive:
        """The input current: f of the inputs' mean values, and in a synchronous simulation f of all steps at once."""
        if y is None and (self.wants_value(ctx) or not inputs):
            y = f(*(train.value for train in inputs))
        mean = None if y is None else self.through_dead_zone(y, ctx)
        if ctx.mode != "spiking" or self.coding.stationary or not inputs:
            return Drive(mean, None)
        with torch.no_grad():
            seen = f(*(train.read(self.coding, t_steps, self.leak) for train in inputs))
            return Drive(mean, self.through_dead_zone(seen, ctx))

    def through_dead_zone(self, y: Tensor, ctx: ForwardContext) -> Tensor:
        """The currents `[..., B, N, D]` without those in the dead zone, whose edge is calibrated on them first where
        `ctx` has a percentile for it."""
        if self.dead_zone is not None:
            if ctx.dead_zone_percentile is not None:
                self.dead_zone.calibrate(y, ctx.tokens, ctx.dead_zone_percentile)
            y = self.dead_zone(y)
        return y.to(self.log_theta.dtype)  # a half-precision current would miscount spikes

    def fire(self, call: LayerCall) -> SpikeTrain:
        """The response of neurons with a fixed theta, by the operation of this forward; recorded and masked."""
        ctx, mask, out = call.ctx, call.mask, self.respond(call)
        train = out.train if call.gate is None else self.through_gate(call, out)
        value = train.value if mask is None or out.masked else train.value * mask
        counts = out.counts
        if counts is not None and mask is not None:
            counts = counts * (mask if mask.dim() == 1 else mask[:, 0])
        rates = mean_rates(call, out.train.value, out.rates) if ctx.rate else None
        ctx.record.add(self.name, counts=counts, first_counts=out.first_counts, rates=rates, trace=out.trace)
        return replace(train, value=value)

    def respond(self, call: LayerCall) -> LayerOutput:
        covered = self.backend is not None and self.backend.covers(call)
        return self.backend.run(call) if covered else OPERATIONS[call.operation](call)

    def through_gate(self, call: LayerCall, out: LayerOutput) -> SpikeTrain:
        """The train behind `call.gate`, unmasked where `out` is."""
        gate, pulses = call.gate, out.train.pulses
        if call.ctx.mode == "spiking" and not self.coding.stationary:
            short = asr(pulses[: gate.shorter], self.leak)
            if call.mask is not None and not out.masked:  # the pulses have it
                short = short / call.mask.detach().clamp(min=torch.finfo(short.dtype).tiny)
            pulses = torch.cat([pulses[: gate.shorter], gate.open.detach() * pulses[gate.shorter :]])
            return replace(out.train, value=gate.mix(out.train.value, short), pulses=pulses)
        with torch.no_grad():
            ctx = replace(call.ctx, mode="equilibrium", rate=False, record=Recorder())
            short = self.respond(
                replace(call, t_steps=gate.shorter, mask=call.mask if out.masked else None, gate=None, ctx=ctx)
            )
        return replace(out.train, value=gate.mix(out.train.value, short.train.value))

    def shown_current(self, drive: Drive, ctx: ForwardContext) -> SpikeTrain:
        """The current as a train, for a membrane shortcut: read step by step as spikes are; its value is the mean that
        they end with, its gradient that of f of the inputs' mean values."""
        if ctx.mode != "spiking" or self.coding.stationary:
            return SpikeTrain(drive.mean)
        steps = drive.mean.detach()[None] if drive.steps is None else drive.steps
        running_mean = self.coding_name == "running_mean"
        end = steps[-1] if running_mean else asr(steps, self.leak)
        value = end if drive.mean is None else drive.mean + (end - drive.mean).detach()
        return SpikeTrain(value, means=steps) if running_mean else SpikeTrain(value, pulses=steps)

    def wants_value(self, ctx: ForwardContext) -> bool:
        """Whether this forward evaluates f on the inputs' mean values: always, but for a synchronous simulation without
        gradient, which needs f step by step only."""
        return ctx.mode != "spiking" or self.coding.stationary or torch.is_grad_enabled()

    @torch.no_grad()
    def calibrate(self, y: Tensor, tokens: Tensor, percentile: float, alive: Tensor | None = None) -> None:
        """Set theta to a percentile of the activation `y [B, N, D]` over real `tokens [B, N]`; one theta for all to
        that of the `alive` channels. Binary spikes see y > 0 only."""
        if not self.log_theta.numel():
            return
        seen = y[tokens]  # [M, D]
        seen = seen.clamp(min=0) if self.neuron.low == 0 else seen.abs()
        if self.log_theta.numel() == 1:
            seen = alive_channels(seen, alive).reshape(-1, 1)
        k = max(1, math.ceil(percentile / 100 * len(seen)))
        theta = seen.kthvalue(k, dim=0).values
        # a channel that is silent on the calibration data still gets a threshold that it can reach
        self.log_theta.copy_(theta.clamp(min=max(theta.max().item() * 1e-2, 1e-6)).log())


def alive_channels(x: Tensor, alive: Tensor | None) -> Tensor:
    """The channels of `x [..., D]` that are `alive [D]`; all of them where none is, or `alive` is None."""
    return x if alive is None or not alive.any() else x[..., alive > 0]


def mean_rates(call: LayerCall, value: Tensor, computed: Tensor | None) -> Tensor:
    """Mean |ASR| over real tokens `[D]`, 0 for a pruned channel whether or not its neuron fires; under masks of each
    sample that of every channel as it fires before them. `computed`: the rates of an implementation that gives them
    with the `value [B, N, D]`."""
    rates = computed
    if rates is None:
        rates = (value.abs() * call.ctx.tokens[..., None]).sum((0, 1)) / (call.theta * call.ctx.n_tokens)
    return rates * call.alive if call.alive is not None and call.alive.dim() == 1 else rates
