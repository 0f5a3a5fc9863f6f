"""A spiking site: a non-linear step of the network followed by a layer of spiking neurons.

`SpikingLayer.forward` asks `f` for a current where the pass needs it, and `SpikingLayer.fire` has it answered by one
of these:

| pass (`context.ForwardContext`) | with torch | with triton, on a GPU |
|---|---|---|
| equilibrium, with gradient: training | `neurons.settle`, `Equilibrium` | `equilibrium.fused_equilibrium` |
| equilibrium, without: closed form, with counts | `closed_form.settled_value` | `scan.fused_totals` |
| spiking, step by step | `simulation.simulate` | `scan.fused_scan` |
| spiking, each sample until it has settled | `simulation.simulate_until_settled` | |
| calibrate, clip | a clip | |

Where no gradient is wanted on a GPU, `models.engine` mostly answers for the whole network, and no site is called.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from spikeprune.errors import known
from spikeprune.kernels.equilibrium import covers, fused_equilibrium
from spikeprune.kernels.scan import fused_totals, scans
from spikeprune.snn.closed_form import settled_value
from spikeprune.snn.coding import CODINGS
from spikeprune.snn.context import ForwardContext, SpikeTrain
from spikeprune.snn.dead_zone import DeadZone, among
from spikeprune.snn.neurons import NEURONS, Equilibrium, asr, settle, simulable
from spikeprune.snn.simulation import shown, simulate, simulate_until_settled

KERNELS = ("torch", "triton")


class SpikingLayer(nn.Module):
    """`spike(f(inputs))` under one of the codings; `theta` is learnt through its logarithm, so it stays positive.

    `kernels`: torch, or triton for the equilibrium forward where `equilibrium.covers` it (IF in float32 on CUDA) and
    the simulation where `scan.scans` does (LIF too); float64, the CPU and calibration are torch's under either. No
    part of the architecture: it may be set any time.
    """

    def __init__(
        self,
        name: str,
        channels: int,
        *,
        neuron: str,
        leak: float,
        coding: str,
        theta: str,
        kernels: str = "torch",
        groups: int = 1,
        dead_zone: bool = False,
    ):
        super().__init__()
        known("spikes", neuron, NEURONS)
        known("coding", coding, CODINGS)
        known("theta", theta, ("channel", "tensor"))
        known("kernels", kernels, KERNELS)
        self.name, self.channels, self.kind, self.kernels = name, channels, neuron, kernels
        self.neuron = NEURONS[neuron]
        self.way, self.coding = coding, CODINGS[coding]
        self.leak = leak
        self.count_first = False  # count the first token's spikes by themselves too, as "pooled"
        self.sends_pulses = False  # its train is read as it is, whatever the coding's readers see
        self.shows_current = False  # its signal carries what drove it too, `SpikeTrain.driven_by`
        self.groups = groups  # of channels, over each of which a neuron with a gain takes its own
        self.log_theta = nn.Parameter(torch.zeros(channels if theta == "channel" else min(channels, 1)))
        self.dead_zone = DeadZone(channels) if dead_zone else None

    @property
    def theta(self) -> Tensor:
        """`[D]` per channel or `[1]` per tensor; `[0]` in a site of no channels."""
        return self.log_theta.exp()

    def forward(
        self,
        f: Callable[..., Tensor],
        *inputs: SpikeTrain,
        t_steps: int,
        run: ForwardContext,
        mask: Tensor | None = None,
        y: Tensor | None = None,
        alive: Tensor | None = None,
    ) -> SpikeTrain:
        """Fire for `t_steps` on `f(*inputs)`; `f` maps tensors `[..., B, N, D_in]` to `[..., B, N, D]`.

        No inputs: `f()` is a constant current. `mask`, broadcast to `[B, N, D]`, silences pruned channels. `y` may hand
        over `f` of the inputs' values where the caller has it already. `alive [D]`: the channels that anything reads,
        where `mask` does not say it; what looks at all channels together looks at these.
        """
        alive = mask if alive is None else alive
        if self.dead_zone is not None:
            y = None if y is None else self.dead_zone.measured(y, run)
            f = self.dead_zone.after(f, run)
        if self.neuron.gain is None:
            return self.fire(f, *inputs, t_steps=t_steps, run=run, mask=mask, y=y, alive=alive)
        return self.scaled(f, *inputs, t_steps=t_steps, run=run, mask=mask, y=y, alive=alive)

    def fire(
        self,
        f,
        *inputs: SpikeTrain,
        t_steps: int,
        run: ForwardContext,
        mask: Tensor | None,
        y: Tensor | None,
        alive: Tensor | None,
    ) -> SpikeTrain:
        """The answer of neurons whose theta is what it is, by the way that the table above gives for this pass."""
        theta = self.theta
        if run.mode == "spiking":
            simulable(t_steps)
        if y is None and (self.wants_value(run) or not inputs):
            y = f(*(signal.value for signal in inputs))
        if y is not None:
            y = y.to(theta.dtype)  # a half-precision current would miscount spikes
        closed = run.mode == "equilibrium" and not torch.is_grad_enabled()
        flat = all(m is None or m.dim() == 1 for m in (mask, alive))
        fused = run.mode == "equilibrium" and not closed and self.kernels == "triton" and flat
        fused = fused and covers(y, self.kind, self.leak)
        if run.mode == "calibrate":
            theta = self.calibrate(y, run, alive)
            signal = SpikeTrain(y.clamp(self.neuron.low * theta, theta))
        elif run.mode == "clip":
            signal = SpikeTrain(y.clamp(self.neuron.low * theta, theta))
        elif closed:
            signal = self.closed_form(y, theta, t_steps, run, mask)
        elif fused:
            shares = run.shares if run.rate else None
            value, rates = fused_equilibrium(y, theta, t_steps, self.kind, mask, shares)
            signal = SpikeTrain(value)
        elif run.mode == "equilibrium":
            a = settle(y.detach(), theta.detach(), t_steps, self.neuron, self.leak)
            signal = SpikeTrain(Equilibrium.apply(y, theta, a, self.neuron.low))
        elif run.settled is not None and self.coding.stationary:
            signal = simulate_until_settled(self, y, t_steps, run, alive)
        else:
            signal = simulate(self, f, inputs, y, t_steps, run, mask, alive)
        if mask is not None:
            if not closed and not fused:  # these have the mask in them
                signal = replace(signal, value=signal.value * mask)
            if self.name in run.counts:
                run.counts[self.name] = run.counts[self.name] * (mask if mask.dim() == 1 else mask[:, 0])
        if self.shows_current and signal.driven_by is None:
            signal.driven_by = SpikeTrain(y)
        if run.rate and not fused:
            fired = signal.value.abs() * run.tokens[..., None]
            fired = fired * alive if mask is None and alive is not None else fired
            rates = fired.sum((0, 1)) / (theta * run.n_tokens)  # [D]
        elif run.rate and alive is not None:
            rates = rates * alive
        if run.rate:  # of a pruned channel 0, whether or not its neuron fires
            run.rates[self.name] = rates
        return signal

    def closed_form(
        self, y: Tensor, theta: Tensor, t_steps: int, run: ForwardContext, mask: Tensor | None
    ) -> SpikeTrain:
        """The equilibrium where no gradient is wanted, mask included, and what it takes: the spikes of each train."""
        tokens = run.tokens if run.count else None
        how = {"t_steps": t_steps, "neuron": self.neuron, "leak": self.leak}
        if self.kernels == "triton" and self.leak == 1.0 and scans(y, self.kind, "accumulate", mask):
            value, counts = fused_totals(y, theta, t_steps, self.kind, mask, tokens)
        else:
            value, counts = settled_value(y, theta, mask=mask, tokens=tokens, **how)
        if counts is not None:
            run.counts[self.name] = counts
        if run.count and self.count_first:
            first = torch.ones_like(run.tokens[:, :1])
            run.counts["pooled"] = settled_value(y[:, :1], theta, mask=None, tokens=first, **how)[1]
        return SpikeTrain(value)

    def scaled(
        self,
        f,
        *inputs: SpikeTrain,
        t_steps: int,
        run: ForwardContext,
        mask: Tensor | None,
        y: Tensor | None,
        alive: Tensor | None,
    ) -> SpikeTrain:
        """`fire` of neurons whose theta follows their input: on currents in units of the gain, by which all that is
        sent is then multiplied. In the synchronous codings the gain is that of each step."""
        dtype, gains, told = self.log_theta.dtype, [], []
        whole = alive if self.groups == 1 else None  # a head is pruned with all of its group

        def relative(*seen: Tensor) -> Tensor:
            told.append(f(*seen).to(dtype))
            gains.append(self.neuron.gain(told[-1], self.groups, whole))
            return told[-1] / gains[-1]

        if y is None and (self.wants_value(run) or not inputs):
            y = f(*(signal.value for signal in inputs))
        y = None if y is None else y.to(dtype)
        gain = None if y is None else self.neuron.gain(y, self.groups, whole)
        how = {"t_steps": t_steps, "run": run, "mask": mask, "alive": alive}
        signal = self.fire(relative, *inputs, y=None if y is None else y / gain, **how)
        stationary = run.mode != "spiking" or self.coding.stationary
        driven_by = None
        if self.shows_current:
            driven_by = (
                SpikeTrain(y) if stationary else shown(self, told[-1].detach() if inputs else y.detach()[None], y)
            )
        if signal.pulses is None or self.coding.stationary:
            return SpikeTrain(signal.value * gain, signal.pulses, gain, driven_by=driven_by)
        at_steps = gains[-1] if gains else gain  # [T, B, N, D], constant where the current is
        pulses = signal.pulses * at_steps.detach()
        mean = asr(pulses, self.leak)
        if gain is None:
            return SpikeTrain(mean, pulses, at_steps[-1], driven_by=driven_by)
        value = signal.value * gain
        return SpikeTrain(value + (mean - value).detach(), pulses, gain, driven_by=driven_by)

    def wants_value(self, run: ForwardContext) -> bool:
        """Whether this pass evaluates f on the inputs' mean values: always, but for a synchronous simulation without
        gradient, which needs f step by step only."""
        return run.mode != "spiking" or self.coding.stationary or torch.is_grad_enabled()

    @torch.no_grad()
    def calibrate(self, y: Tensor, run: ForwardContext, alive: Tensor | None = None) -> Tensor:
        """Put theta at a percentile of the activation over real tokens, one for all at that of the channels that are
        `alive`; returns it. Binary spikes see y > 0 only."""
        if not self.log_theta.numel():
            return self.theta
        seen = y[run.tokens]  # [M, D]
        seen = seen.clamp(min=0) if self.neuron.low == 0 else seen.abs()
        if self.log_theta.numel() == 1:
            seen = among(seen, alive).reshape(-1, 1)
        k = max(1, math.ceil(run.percentile / 100 * len(seen)))
        theta = seen.kthvalue(k, dim=0).values
        # a channel that is silent on the calibration data still gets a threshold that it can reach
        self.log_theta.copy_(theta.clamp(min=max(theta.max().item() * 1e-2, 1e-6)).log())
        return self.theta
