"""Spiking neurons as pure steps: `(x, u, theta, leak) -> (s, u)`. State in, state out.

Soft reset, as in Bal & Sengupta 2024 (SpikingBERT, arXiv 2308.10873) for binary spikes and Xing et al. 2024 (SpikeLM)
for ternary ones:

    u <- leak * u + x        s = [u >= kappa*theta] (- [u <= -kappa*theta] if ternary)        u <- u - theta * s

`leak = 1` is the integrate-and-fire neuron (IF), `leak < 1` the leaky one (LIF). A synapse receives `theta * s`; theta
folds into its weight, so that only `s` is transmitted.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

LONGEST = 4096  # most time steps of a simulated train
Step = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]


class Neuron(NamedTuple):
    """A kind of neuron. `settled` is optional: without it the equilibrium is computed step by step."""

    step: Step
    start: float  # membrane before the first step, in units of theta: rounds to nearest
    low: float  # smallest ASR: 0 binary, -1 ternary
    settled: Callable[[Tensor, int], Tensor] | None  # spikes after T steps of the constant input x/theta, leak 1
    high: float = 1.0  # largest ASR
    # of an adaptive threshold, the factor of theta: `(currents [..., D], groups, alive [D] or None) -> [..., D]`
    gain: Callable[[Tensor, int, Tensor | None], Tensor] | None = None


def binary_step(x: Tensor, u: Tensor, theta: Tensor, leak: float) -> tuple[Tensor, Tensor]:
    """Spikes in {0, 1}, kappa = 1. All tensors broadcast to the shape of `x`."""
    u = leak * u + x
    s = (u >= theta).to(u.dtype)
    return s, u - theta * s


def ternary_step(x: Tensor, u: Tensor, theta: Tensor, leak: float) -> tuple[Tensor, Tensor]:
    """Spikes in {-1, 0, 1}, kappa = 1/2. All tensors broadcast to the shape of `x`."""
    u = leak * u + x
    s = (u >= theta / 2).to(u.dtype) - (u <= -theta / 2).to(u.dtype)
    return s, u - theta * s


def binary_settled(r: Tensor, t_steps: int) -> Tensor:
    """Spikes of an IF neuron in T steps of constant input `r = x/theta`: `clip(floor(T r + 1/2), 0, T)`."""
    return (t_steps * r).add_(0.5).floor_().clamp_(0, t_steps)


def ternary_settled(r: Tensor, t_steps: int) -> Tensor:
    """Signed spikes of a ternary IF neuron: T r rounded to nearest, halves away from zero, within +-T."""
    n = t_steps * r
    return n.sign().mul_(n.abs().add_(0.5).floor_().clamp_(max=t_steps))


def dense_step(x: Tensor, u: Tensor, theta: Tensor, leak: float) -> tuple[Tensor, Tensor]:
    """A real number in place of a spike: the whole membrane is sent, and none is left. No spiking neuron."""
    s = (leak * u + x) / theta
    return s, torch.zeros_like(s)


def dense_settled(r: Tensor, t_steps: int) -> Tensor:
    return t_steps * r


def rms_gain(x: Tensor, groups: int, alive: Tensor | None) -> Tensor:
    """Root mean square of a token's currents over each of `groups` equal parts of the channels, `alive` ones only.

    An input-dependent threshold: a token with large currents needs more of it for a spike, so firing rates hardly
    depend on the size of the input (divisive normalisation: Carandini & Heeger 2012, Normalization as a canonical
    neural computation). A gain must not mix tokens or parts.
    """
    if not x.shape[-1]:
        return x
    parts = x.square().unflatten(-1, (groups, -1))
    if alive is None:
        mean = parts.mean(-1, keepdim=True)
    else:
        weights = alive.detach().to(x.dtype).unflatten(-1, (groups, -1))
        mean = (parts * weights).sum(-1, keepdim=True) / weights.sum(-1, keepdim=True).clamp(min=1)
    return (mean + 1e-12).sqrt().expand_as(parts).flatten(-2)


NEURONS: dict[str, Neuron] = {
    "binary": Neuron(step=binary_step, start=0.5, low=0.0, settled=binary_settled),
    "ternary": Neuron(step=ternary_step, start=0.0, low=-1.0, settled=ternary_settled),
    "ternary_scaled": Neuron(step=ternary_step, start=0.0, low=-1.0, settled=ternary_settled, gain=rms_gain),
}
# Activations of the dense opponent: its equilibrium is the identity, no rounding and no clip, whatever theta and T are.
DENSE = {"dense": Neuron(step=dense_step, start=0.0, low=-torch.inf, settled=dense_settled, high=torch.inf)}
ACTIVATIONS = ChainMap(NEURONS, DENSE)


def simulable(t_steps: int) -> None:
    """Raises ValueError for a train that is too long to be simulated step by step."""
    if t_steps > LONGEST:
        raise ValueError(
            f"{t_steps} time steps cannot be taken one by one: at most {LONGEST}; only neurons with `settled` and "
            "leak 1 have longer trains, in closed form"
        )


def leak_weights(t_steps: int, leak: float, device: torch.device | None = None) -> Tensor:
    """`[T]` float64: `leak^(T-t)` for t = 1..T, the weight of step t in the ASR after T steps. Made on the device: a
    copy to it cannot be captured in a CUDA graph."""
    simulable(t_steps)
    return leak ** torch.arange(t_steps - 1, -1, -1, dtype=torch.float64, device=device)


def steps(x: Iterable[Tensor], theta: Tensor, neuron: Neuron, leak: float) -> Iterable[Tensor]:
    """Spikes `s[t]`, one tensor a step, of a neuron that starts at rest and is driven by the currents `x[t]`."""
    u = None
    for current in x:
        if u is None:
            u = torch.zeros_like(current) + neuron.start * theta
        s, u = neuron.step(current, u, theta, leak)
        yield s


def asr(spikes: Tensor, leak: float = 1.0) -> Tensor:
    """Average spiking rate, `[T, ...]` -> `[...]`: `sum leak^(T-t) s[t] / sum leak^(T-t)` (SpikingBERT)."""
    weights = leak_weights(len(spikes), leak, spikes.device).to(spikes.dtype)
    return torch.tensordot(weights, spikes, dims=1) / weights.sum()


def settle(x: Tensor, theta: Tensor, t_steps: int, neuron: Neuron, leak: float) -> Tensor:
    """ASR after T steps of the constant input `x`, same shape as `x`, no gradient.

    Closed form for IF: the T-level quantizer of `x/theta`. A LIF neuron's reachable rates are no uniform grid, so there
    the T element-wise steps are taken; that costs no matrix product.
    """
    with torch.no_grad():
        if leak == 1.0 and neuron.settled is not None:
            return neuron.settled(x / theta, t_steps) / t_steps
        weights = leak_weights(t_steps, leak).tolist()
        fired = steps((x for _ in weights), theta, neuron, leak)
        return sum(w * s for w, s in zip(weights, fired, strict=True)) / sum(weights)


class Equilibrium(torch.autograd.Function):
    """Forward `theta * a`; backward the gradient of `theta * clip(x/theta, low, high)` with theta learnt as in LSQ.

    Implicit differentiation at the neuron's equilibrium (SpikingBERT): to the input 1 inside the clip and 0
    outside; to theta `a - x/theta` inside and `a` outside (Esser et al. 2020, eq. 3).
    """

    @staticmethod
    def forward(ctx, x: Tensor, theta: Tensor, a: Tensor, low: float, high: float = 1.0) -> Tensor:
        ctx.save_for_backward(x, theta, a)
        ctx.low, ctx.high = low, high
        return theta * a

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, theta, a = ctx.saved_tensors
        r = x / theta
        inside = ((r > ctx.low) & (r < ctx.high)).to(grad.dtype)
        grad_theta = grad * (a - r * inside)
        return grad * inside, grad_theta.sum_to_size(theta.shape), None, None, None
