"""A spiking site: a non-linear step of the network followed by a layer of spiking neurons."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from spikeprune.spiking.closed import blocks, settled_value, tokens_sum
from spikeprune.spiking.coding import CODINGS, Coding, drive_constant, hold, read_running_mean
from spikeprune.spiking.dead_zone import DeadZone
from spikeprune.spiking.early import until_settled
from spikeprune.spiking.kernels import covers, fused_equilibrium
from spikeprune.spiking.neurons import NEURONS, Equilibrium, asr, leak_weights, settle, steps
from spikeprune.spiking.scan import WAYS, fused_scan, fused_totals, scans


@dataclass
class Signal:
    """What a site sends on. `value [B, N, D]` is `theta * ASR` and carries the gradient; `pulses [T, B, N, D]` are
    `theta * s[t]`, kept only where a synchronous coding reads them, and not where a kernel made the running `means` of
    them at once."""

    value: Tensor
    pulses: Tensor | None = None
    gain: Tensor | None = None  # [B, N, D] by which a neuron with a gain has multiplied theta
    means: Tensor | None = None
    seen: dict[int, Tensor] = field(default_factory=dict)

    def read(self, coding: Coding, t_steps: int, leak: float) -> Tensor:
        """What a reader of `t_steps` sees of the train. The readers of a signal share it."""
        if t_steps not in self.seen:
            means = self.means
            self.seen[t_steps] = (
                coding.read(self.pulses, t_steps, leak) if means is None else hold(means, lambda: means[-1], t_steps)
            )
        return self.seen[t_steps]

    def asr(self, theta: Tensor) -> Tensor:
        """`value` in spikes a step, of neurons with this theta."""
        return self.value / theta if self.gain is None else self.value / (theta * self.gain)


@dataclass
class Pass:
    """One forward pass: how the sites answer, and what they leave behind under their names."""

    # equilibrium: closed form | spiking: step by step | calibrate: sets theta, then clips | clip: as for T -> infinity
    mode: str
    tokens: Tensor  # [B, N] bool, True where a token is no padding
    count: bool = False  # leave spike counts (spiking mode; equilibrium mode: of each train in all)
    rate: bool = False  # leave differentiable mean rates
    trace: bool = False  # leave how fast each ASR settles (spiking mode)
    scores: bool = True  # attention scores are wanted; without them attention need not write them
    percentile: float = 99.0  # calibrate: of a channel's activation, where theta is put
    deaden: float | None = None  # spiking: percentile of each site's currents at which its dead zone is put to end
    settled: float | None = None  # spiking, accumulate: a sample's train ends once its ASR changes by less than this
    counts: dict[str, Tensor] = field(default_factory=dict)  # site -> spikes on real tokens [T, B, D] or [1, B, D]
    rates: dict[str, Tensor] = field(default_factory=dict)  # site -> mean |ASR| over real tokens [D]
    traces: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)  # see `settling`
    stops: dict[str, Tensor] = field(default_factory=dict)  # with `settled`: site -> steps that each sample took [B]

    @cached_property
    def n_tokens(self) -> Tensor:
        """Real tokens of the batch, scalar."""
        return self.tokens.sum()


class Site(nn.Module):
    """`spike(f(inputs))` under one of the codings; `theta` is learnt through its logarithm, so it stays positive.

    `kernels`: torch, or triton for the equilibrium forward where `kernels.covers` it (IF in float32 on CUDA) and the
    simulation where `scan.scans` does (LIF too); float64, the CPU and calibration are torch's under either. No part of
    the architecture: it may be set any time.
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
        dead_zone: str = "none",
    ):
        super().__init__()
        self.name, self.kind, self.kernels = name, neuron, kernels
        self.neuron = NEURONS[neuron]
        self.way, self.coding = coding, CODINGS[coding]
        self.leak = leak
        self.count_first = False  # count the first token's spikes by themselves too, as "pooled"
        self.sends_pulses = False  # its train is read as it is, whatever the coding's readers see
        self.groups = groups  # of channels, over each of which a neuron with a gain takes its own
        self.log_theta = nn.Parameter(torch.zeros(channels if theta == "channel" else min(channels, 1)))
        self.dead_zone = None if dead_zone == "none" else DeadZone(channels if dead_zone == "channel" else 1)

    @property
    def theta(self) -> Tensor:
        """`[D]` per channel or `[1]` per tensor; `[0]` in a site of no channels."""
        return self.log_theta.exp()

    def forward(
        self,
        f: Callable[..., Tensor],
        *inputs: Signal,
        t_steps: int,
        run: Pass,
        mask: Tensor | None = None,
        y: Tensor | None = None,
        alive: Tensor | None = None,
    ) -> Signal:
        """Fire for `t_steps` on `f(*inputs)`; `f` maps tensors `[..., B, N, D_in]` to `[..., B, N, D]`.

        No inputs: `f()` is a constant current. `mask`, broadcast to `[B, N, D]`, silences pruned channels. `y` may hand
        over `f` of the inputs' values where the caller has it already. `alive [D]`: the channels that anything reads,
        where `mask` does not say it; what looks at all channels together looks at these.
        """
        alive = mask if alive is None else alive
        if self.dead_zone is not None:
            f, y = self.dead_zone.after(f, run), None if y is None else self.dead_zone.measured(y, run)
        if self.neuron.gain is None:
            return self.fire(f, *inputs, t_steps=t_steps, run=run, mask=mask, y=y, alive=alive)
        return self.scaled(f, *inputs, t_steps=t_steps, run=run, mask=mask, y=y, alive=alive)

    def scaled(
        self, f, *inputs: Signal, t_steps: int, run: Pass, mask: Tensor | None, y: Tensor | None, alive: Tensor | None
    ) -> Signal:
        """`fire` of neurons whose theta follows their input: on currents in units of the gain, by which all that is
        sent is then multiplied. In the synchronous codings the gain is that of each step."""
        dtype, gains = self.log_theta.dtype, []
        whole = alive if self.groups == 1 else None  # a head is pruned with all of its group

        def relative(*seen: Tensor) -> Tensor:
            current = f(*seen).to(dtype)
            gains.append(self.neuron.gain(current, self.groups, whole))
            return current / gains[-1]

        if y is None and (self.wants_value(run) or not inputs):
            y = f(*(signal.value for signal in inputs))
        y = None if y is None else y.to(dtype)
        gain = None if y is None else self.neuron.gain(y, self.groups, whole)
        how = {"t_steps": t_steps, "run": run, "mask": mask, "alive": alive}
        signal = self.fire(relative, *inputs, y=None if y is None else y / gain, **how)
        if signal.pulses is None or self.coding.stationary:
            return Signal(signal.value * gain, signal.pulses, gain)
        at_steps = gains[-1] if gains else gain  # [T, B, N, D], constant where the current is
        pulses = signal.pulses * at_steps.detach()
        mean = asr(pulses, self.leak)
        if gain is None:
            return Signal(mean, pulses, at_steps[-1])
        value = signal.value * gain
        return Signal(value + (mean - value).detach(), pulses, gain)

    def fire(
        self, f, *inputs: Signal, t_steps: int, run: Pass, mask: Tensor | None, y: Tensor | None, alive: Tensor | None
    ) -> Signal:
        theta = self.theta
        if y is None and (self.wants_value(run) or not inputs):
            y = f(*(signal.value for signal in inputs))
        if y is not None:
            y = y.to(theta.dtype)  # a half-precision current would miscount spikes
        closed = run.mode == "equilibrium" and not torch.is_grad_enabled()  # that path has the mask in it
        if run.mode == "calibrate":
            theta = self.calibrate(y, run)
            signal = Signal(y.clamp(self.neuron.low * theta, theta))
        elif run.mode == "clip":
            signal = Signal(y.clamp(self.neuron.low * theta, theta))
        elif closed:
            signal = self.settled(y, theta, t_steps, run, mask)
        elif run.mode == "equilibrium" and self.kernels == "triton" and covers(y, self.kind, self.leak):
            signal = Signal(fused_equilibrium(y, theta, t_steps, self.kind))
        elif run.mode == "equilibrium":
            a = settle(y.detach(), theta.detach(), t_steps, self.neuron, self.leak)
            signal = Signal(Equilibrium.apply(y, theta, a, self.neuron.low))
        elif run.settled is not None and self.coding.stationary:
            signal = self.until_settled(y, t_steps, run, alive)
        else:
            signal = self.simulate(f, inputs, y, t_steps, run, mask)
        if mask is not None:
            if not closed:
                signal = replace(signal, value=signal.value * mask)
            if self.name in run.counts:
                run.counts[self.name] = run.counts[self.name] * (mask if mask.dim() == 1 else mask[:, 0])
        if run.rate:
            fired = (signal.value.abs() * run.tokens[..., None]).sum((0, 1))  # [D], in units of theta
            run.rates[self.name] = fired / (theta * run.n_tokens)
        return signal

    def settled(self, y: Tensor, theta: Tensor, t_steps: int, run: Pass, mask: Tensor | None) -> Signal:
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
        return Signal(value)

    def wants_value(self, run: Pass) -> bool:
        """Whether this pass evaluates f on the inputs' mean values: always, but for a synchronous simulation without
        gradient, which needs f step by step only."""
        return run.mode != "spiking" or self.coding.stationary or torch.is_grad_enabled()

    def currents(self, f: Callable[..., Tensor], inputs: tuple[Signal, ...], y: Tensor | None, t_steps: int) -> Tensor:
        """Input currents `[T, B, N, D]` of the neurons."""
        if self.coding.stationary or not inputs:
            return drive_constant(y[None], t_steps, self.leak)
        return self.coding.drive(self.answers(f, inputs, t_steps), t_steps, self.leak)

    def answers(self, f: Callable[..., Tensor], inputs: tuple[Signal, ...], t_steps: int) -> Tensor:
        """What f says to what it sees, step by step `[T, B, N, D]`: one pass of f over all steps."""
        seen = f(*(signal.read(self.coding, t_steps, self.leak) for signal in inputs))
        return seen.to(self.log_theta.dtype)

    def simulate(
        self, f, inputs: tuple[Signal, ...], y: Tensor | None, t_steps: int, run: Pass, mask: Tensor | None
    ) -> Signal:
        """Step by step without gradient; the value is the measured ASR, its gradient that of the equilibrium. The mask
        is in the train, not yet in the value."""
        theta = self.theta
        if self.kernels == "triton" and not run.trace and scans(theta, self.kind, self.way, mask):
            return self.scan(f, inputs, y, t_steps, run, mask)
        weights, wanted = leak_weights(t_steps, self.leak).tolist(), torch.is_grad_enabled()
        with torch.no_grad():
            x = self.currents(f, inputs, None if y is None else y.detach(), t_steps)
            keep = None if self.coding.stationary and not run.trace else torch.empty_like(x)
            counts = x.new_empty(t_steps, x.shape[1], x.shape[3]) if run.count else None
            first = torch.empty_like(counts) if run.count and self.count_first else None
            a, mean = torch.zeros_like(x[0]), torch.zeros_like(x[0])
            for rows in blocks(a):
                for t, s in enumerate(steps(x[:, rows], theta, self.neuron, self.leak)):
                    a[rows].add_(s, alpha=weights[t])
                    if wanted:
                        mean[rows].add_(x[t, rows], alpha=weights[t])
                    if keep is not None:
                        torch.mul(theta, s, out=keep[t, rows])
                    if counts is not None:
                        counts[t, rows] = tokens_sum(s.abs(), run.tokens[rows])
                    if first is not None:
                        first[t, rows] = s[:, 0].abs()
            a, mean = a / sum(weights), mean / sum(weights)
            if run.trace:
                run.traces[self.name] = settling(keep / theta, run.tokens, self.leak)
            if keep is not None and mask is not None:
                keep.mul_(mask)
        if counts is not None:
            run.counts[self.name] = counts
        if first is not None:
            run.counts["pooled"] = first
        return Signal(self.measured(y, a, mean), keep)

    def measured(self, y: Tensor | None, a: Tensor, mean: Tensor | None) -> Tensor:
        """The measured ASR as a value; its gradient, where one is wanted, is the equilibrium's."""
        if not torch.is_grad_enabled():
            return self.theta * a
        # the clip is judged at the measured mean input, which per_step's f(mean) is not
        return Equilibrium.apply(y + (mean - y).detach(), self.theta, a, self.neuron.low)

    def scan(
        self, f, inputs: tuple[Signal, ...], y: Tensor | None, t_steps: int, run: Pass, mask: Tensor | None
    ) -> Signal:
        """`simulate` with the membranes' steps in one kernel."""
        constant, (wrapped, seen) = self.coding.stationary or not inputs, WAYS[self.way]
        seen = "pulses" if seen and self.sends_pulses else seen
        how = {"theta": self.theta, "t_steps": t_steps, "kind": self.kind, "leak": self.leak}
        how |= {"wrapped": wrapped and not constant, "mean": torch.is_grad_enabled()}
        with torch.no_grad():
            x = y if constant else self.answers(f, inputs, t_steps)
            tokens = run.tokens if run.count else None
            done = fused_scan(x, **how, seen=seen, mask=mask, tokens=tokens)
            if run.count:
                run.counts[self.name] = done.counts
            if run.count and self.count_first:
                first = torch.ones_like(run.tokens[:, :1])
                run.counts["pooled"] = fused_scan(x[..., :1, :], **how, tokens=first).counts
        value = self.measured(y, done.a, done.mean)
        return Signal(value, **{} if seen is None else {seen: done.seen})

    def until_settled(self, y: Tensor, t_steps: int, run: Pass, alive: Tensor | None) -> Signal:
        """As `simulate`, but each sample's train ends once it has settled; its sum so far is its mean. No gradient."""
        theta = self.theta
        how = {"neuron": self.neuron, "leak": self.leak, "tokens": run.tokens, "alive": alive, "bound": run.settled}
        trains = until_settled(y, theta, t_steps, **how)
        run.stops[self.name] = trains.stops
        if run.count:
            run.counts[self.name] = trains.counts
            if self.count_first:
                run.counts["pooled"] = trains.first
        return Signal(theta * trains.a)

    @torch.no_grad()
    def calibrate(self, y: Tensor, run: Pass) -> Tensor:
        """Put theta at a percentile of the activation over real tokens; returns it. Binary spikes see y > 0 only."""
        if not self.log_theta.numel():
            return self.theta
        seen = y[run.tokens]  # [M, D]
        seen = seen.clamp(min=0) if self.neuron.low == 0 else seen.abs()
        if self.log_theta.numel() == 1:
            seen = seen.reshape(-1, 1)
        k = max(1, math.ceil(run.percentile / 100 * len(seen)))
        theta = seen.kthvalue(k, dim=0).values
        # a channel that is silent on the calibration data still gets a threshold that it can reach
        self.log_theta.copy_(theta.clamp(min=max(theta.max().item() * 1e-2, 1e-6)).log())
        return self.theta


def settling(spikes: Tensor, tokens: Tensor, leak: float) -> tuple[Tensor, Tensor]:
    """`[T, B, N, D]` -> sums over real tokens and channels of |a[t] - a[T]|, `[T]`, and of |a[T]|, scalar."""
    a = read_running_mean(spikes, len(spikes), leak)
    weights = tokens[..., None].to(a.dtype)
    return ((a - a[-1]).abs() * weights).flatten(1).sum(1), (a[-1].abs() * weights).sum()
