"""A spiking site's neurons step by step: what a simulation sends on, counts and leaves behind.

A simulation has no gradient of its own: its value is the measured ASR, with the gradient of the equilibrium. `f` maps
what the readers see `[..., B, N, D_in]` to currents `[..., B, N, D]`; `y [B, N, D]` is f of the inputs' mean values,
where the pass has it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spikeprune.kernels.scan import WAYS, fused_scan, scans
from spikeprune.snn.closed_form import blocks, tokens_sum
from spikeprune.snn.coding import drive_constant, read_running_mean
from spikeprune.snn.context import ForwardContext, SpikeTrain
from spikeprune.snn.early_exit import until_settled
from spikeprune.snn.neurons import Equilibrium, asr, leak_weights, steps

if TYPE_CHECKING:
    from spikeprune.snn.spiking_layer import SpikingLayer


def simulate(
    site: SpikingLayer,
    f: Callable[..., Tensor],
    inputs: tuple[SpikeTrain, ...],
    y: Tensor | None,
    t_steps: int,
    run: ForwardContext,
    mask: Tensor | None,
    alive: Tensor | None,
) -> SpikeTrain:
    """Step by step without gradient; the value is the measured ASR, its gradient that of the equilibrium. The mask
    is in the train, not yet in the value. A trace is of the channels that are `alive`."""
    theta = site.theta
    if site.kernels == "triton" and not run.trace and scans(theta, site.kind, site.way, mask):
        return simulate_fused(site, f, inputs, y, t_steps, run, mask)
    weights, wanted = leak_weights(t_steps, site.leak).tolist(), torch.is_grad_enabled()
    with torch.no_grad():
        told, x = currents(site, f, inputs, None if y is None else y.detach(), t_steps)
        keep = None if site.coding.stationary and not run.trace else torch.empty_like(x)
        counts = x.new_empty(t_steps, x.shape[1], x.shape[3]) if run.count else None
        first = torch.empty_like(counts) if run.count and site.count_first else None
        a, mean = torch.zeros_like(x[0]), torch.zeros_like(x[0])
        for rows in blocks(a):
            for t, s in enumerate(steps(x[:, rows], theta, site.neuron, site.leak)):
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
            run.traces[site.name] = settling(keep / theta, run.tokens, site.leak, alive)
        if keep is not None and mask is not None:
            keep.mul_(mask)
    if counts is not None:
        run.counts[site.name] = counts
    if first is not None:
        run.counts["pooled"] = first
    return SpikeTrain(measured(site, y, a, mean), keep, driven_by=shown(site, told, y))


def measured(site: SpikingLayer, y: Tensor | None, a: Tensor, mean: Tensor | None) -> Tensor:
    """The measured ASR as a value; its gradient, where one is wanted, is the equilibrium's."""
    if not torch.is_grad_enabled():
        return site.theta * a
    # the clip is judged at the measured mean input, which per_step's f(mean) is not
    return Equilibrium.apply(y + (mean - y).detach(), site.theta, a, site.neuron.low)


def simulate_fused(
    site: SpikingLayer,
    f: Callable[..., Tensor],
    inputs: tuple[SpikeTrain, ...],
    y: Tensor | None,
    t_steps: int,
    run: ForwardContext,
    mask: Tensor | None,
) -> SpikeTrain:
    """`simulate` with the membranes' steps in one kernel."""
    constant, (wrapped, seen) = site.coding.stationary or not inputs, WAYS[site.way]
    seen = "pulses" if seen and site.sends_pulses else seen
    how = {"theta": site.theta, "t_steps": t_steps, "kind": site.kind, "leak": site.leak}
    how |= {"wrapped": wrapped and not constant, "mean": torch.is_grad_enabled()}
    with torch.no_grad():
        x = y if constant else answers(site, f, inputs, t_steps)
        tokens = run.tokens if run.count else None
        done = fused_scan(x, **how, seen=seen, mask=mask, tokens=tokens)
        if run.count:
            run.counts[site.name] = done.counts
        if run.count and site.count_first:
            first = torch.ones_like(run.tokens[:, :1])
            run.counts["pooled"] = fused_scan(x[..., :1, :], **how, tokens=first).counts
    value, told = measured(site, y, done.a, done.mean), y.detach()[None] if constant else x
    return SpikeTrain(value, **{} if seen is None else {seen: done.seen}, driven_by=shown(site, told, y))


def simulate_until_settled(
    site: SpikingLayer, y: Tensor, t_steps: int, run: ForwardContext, alive: Tensor | None
) -> SpikeTrain:
    """As `simulate`, but each sample's train ends once it has settled; its sum so far is its mean. No gradient."""
    theta = site.theta
    how = {"neuron": site.neuron, "leak": site.leak, "tokens": run.tokens, "alive": alive, "bound": run.settled}
    trains = until_settled(y, theta, t_steps, **how)
    run.stops[site.name] = trains.stops
    if run.count:
        run.counts[site.name] = trains.counts
        if site.count_first:
            run.counts["pooled"] = trains.first
    return SpikeTrain(theta * trains.a)


def currents(
    site: SpikingLayer, f: Callable[..., Tensor], inputs: tuple[SpikeTrain, ...], y: Tensor | None, t_steps: int
) -> tuple[Tensor, Tensor]:
    """What f says, `[T, B, N, D]` or once for all steps `[1, B, N, D]`, and the neurons' input currents `[T, …]`."""
    if site.coding.stationary or not inputs:
        return y[None], drive_constant(y[None], t_steps, site.leak)
    told = answers(site, f, inputs, t_steps)
    return told, site.coding.drive(told, t_steps, site.leak)


def shown(site: SpikingLayer, told: Tensor, y: Tensor | None) -> SpikeTrain | None:
    """What f has said, `told [R, B, N, D]`, as a signal whose readers see it step by step as they see a train; its
    value is the mean that they end with, its gradient that of y. None where nobody reads it."""
    if not site.shows_current or site.coding.stationary:
        return None
    means = site.way == "running_mean"
    end = told[-1] if means else asr(told, site.leak)
    value = end if y is None else y + (end - y).detach()
    return SpikeTrain(value, **{"means" if means else "pulses": told})


def answers(site: SpikingLayer, f: Callable[..., Tensor], inputs: tuple[SpikeTrain, ...], t_steps: int) -> Tensor:
    """What f says to what it sees, step by step `[T, B, N, D]`: one pass of f over all steps."""
    seen = f(*(signal.read(site.coding, t_steps, site.leak) for signal in inputs))
    return seen.to(site.log_theta.dtype)


def settling(spikes: Tensor, tokens: Tensor, leak: float, alive: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`[T, B, N, D]` -> sums over real tokens and channels (those `alive`, if given) of |a[t] - a[T]|, `[T]`, and of
    |a[T]|, scalar."""
    a = read_running_mean(spikes, len(spikes), leak)
    weights = tokens[..., None].to(a.dtype) * (1.0 if alive is None else alive)
    return ((a - a[-1]).abs() * weights).flatten(1).sum(1), (a[-1].abs() * weights).sum()
