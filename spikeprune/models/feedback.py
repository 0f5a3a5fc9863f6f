"""The connection from the last layer back to the first (Bal & Sengupta 2024, SpikingBERT, arXiv 2308.10873; Xiao et al.
2021, arXiv 2109.14247): the embedding's spiking layer is driven by `E + Wf a_L`.

The equilibrium of the network is then a fixed point: with z the values of the last layer and G one forward with z fed
back, `z* = G(z*)`. G is the network of exact rates, the `clip` of each spiking layer without rounding: a rounded
network is piecewise constant and may have no fixed point. From z* one ordinary forward with T-level rates gives the
outputs. In the backward pass a gradient v of z* becomes the solution of `w = v + J^T w`, J = dG/dz (implicit function
theorem), and w is backpropagated through one forward: the iterations are not stored, and the gradient is exact for the
clip network.

Both fixed points are found by Anderson acceleration, for each sentence separately. In a simulation the last layer's
spikes arrive one time step later; all layers advance together, so only the synchronous codings can have feedback.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from spikeprune.errors import InputError
from spikeprune.snn.context import ForwardContext, SpikeTrain
from spikeprune.snn.neurons import asr

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-11}  # of the residual, relative to the point
RIDGE = {torch.float32: 1e-5, torch.float64: 1e-11}  # of the least squares, relative to its matrix
MOST = 100  # evaluations of the map
MEMORY = 6  # earlier points that a step looks back at
Encode = Callable[..., tuple]  # (ctx=, back=) -> (the last layer's train, …): see `SpikingBert.encode`


class Solution(NamedTuple):
    z: Tensor
    steps: int  # evaluations of the map
    residual: float  # the largest sentence's |f(z) - z| / |f(z)|


def anderson(f: Callable[[Tensor], Tensor], z: Tensor, *, tolerance: float, most: int = MOST) -> Solution:
    """A fixed point of `f`, `[B, …]` to the same, found for each of B by itself (Walker & Ni 2011, type II).

    What has converged stays as it is. Without convergence the last residual is above `tolerance`, or nan.
    """
    shape, z = z.shape, z.flatten(1)
    points: list[Tensor] = []  # f(z) and
    gaps: list[Tensor] = []  # f(z) - z of the last MEMORY + 1 evaluations
    for step in range(1, most + 1):
        value = f(z.view(shape)).flatten(1)
        gap = value - z
        residual = gap.norm(dim=1) / value.norm(dim=1).clamp(min=1e-12)
        if not (residual > tolerance).any() or step == most:
            break
        points, gaps = [*points[-MEMORY:], value], [*gaps[-MEMORY:], gap]
        new = value
        if len(gaps) > 1:
            moves = torch.stack([b - a for a, b in zip(gaps, gaps[1:], strict=False)], -1)  # [B, M, m]
            strides = torch.stack([b - a for a, b in zip(points, points[1:], strict=False)], -1)
            gram = moves.mT @ moves
            size = gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
            ridge = (size * RIDGE[z.dtype] + 1e-30) * torch.eye(gram.shape[-1]).to(gram)
            shares = torch.linalg.solve_ex(gram + ridge, moves.mT @ gap[..., None])[0]  # [B, m, 1]
            new = value - (strides @ shares)[..., 0]
        z = torch.where((residual > tolerance)[:, None], new, z)
    return Solution(z.view(shape), step, residual.max().item())


def solve(f: Callable[[Tensor], Tensor], z: Tensor, what: str) -> Solution:
    """`anderson`, or an InputError where it does not converge."""
    found = anderson(f, z, tolerance=TOLERANCE[z.dtype])
    if not found.residual <= TOLERANCE[z.dtype]:
        raise InputError(
            f"student.feedback: {what} did not converge (residual {found.residual:.2g} after {found.steps} evaluations "
            f"of the network, wanted {TOLERANCE[z.dtype]:g}): the feedback has become too strong; lower the stage's lr"
        )
    return found


def feedback_train(
    encode: Encode, ctx: ForwardContext, zero: Tensor, *, t_steps: int, leak: float, solved: dict[str, float]
) -> SpikeTrain:
    """The last layer's train as it is fed back in the forward `ctx`. `zero [B, N, D]`: where to start; `t_steps`: the
    embedding's.

    Writes into `solved`: `steps` and `residual` of the fixed point, and once a gradient has come back the adjoint's. In
    a simulation that is trained `steps` is 0, since time itself iterates, and `residual` the relative distance between
    the mean of what arrived at the first layer and the mean of what the last one sent.
    """
    if ctx.mode == "calibrate":  # before training, when the feedback is zero
        return SpikeTrain(zero)
    with torch.autocast(zero.device.type, enabled=False):
        if ctx.mode == "spiking":
            return simulated_feedback(encode, ctx, zero, t_steps, leak, solved)
        return equilibrium_feedback(encode, ctx, zero, solved)


def equilibrium_feedback(encode: Encode, ctx: ForwardContext, zero: Tensor, solved: dict[str, float]) -> SpikeTrain:
    """The fixed point, with its implicit gradient."""
    real = ctx.tokens[..., None].to(zero.dtype)

    def network(z: Tensor) -> Tensor:
        return encode(ctx=ForwardContext("clip", ctx.tokens), back=SpikeTrain(z))[0].value * real

    with torch.no_grad():
        found = solve(network, zero, "the equilibrium")
    solved |= {"steps": found.steps, "residual": found.residual}
    return SpikeTrain(implicit(network, found.z, solved) if torch.is_grad_enabled() else found.z)


def implicit(network: Callable[[Tensor], Tensor], z: Tensor, solved: dict[str, float]) -> Tensor:
    """`network(z)`, where the gradient that arrives is first solved for the fixed point's."""
    point = z.detach().requires_grad_()
    image = network(point)
    out = network(z.detach())

    def adjoint(v: Tensor) -> Tensor:
        def back(w: Tensor) -> Tensor:
            return v + torch.autograd.grad(image, point, w, retain_graph=True)[0]

        found = solve(back, torch.zeros_like(v), "the adjoint equilibrium of the gradient")
        solved.update(adjoint_steps=found.steps, adjoint_residual=found.residual)
        return found.z

    if out.requires_grad:
        out.register_hook(adjoint)
    return out


def simulated_feedback(
    encode: Encode, ctx: ForwardContext, zero: Tensor, t_steps: int, leak: float, solved: dict[str, float]
) -> SpikeTrain:
    """The spikes of the last layer as they reach the first in a simulation, each one step after it was sent.

    Each spiking layer takes all its steps at once, so the train is built up sweep by sweep: where the fed-back train is
    right for k steps, the output is right for k + 1. That is T simulations, of which only the last is kept.
    """
    pulses = zero[None]
    with torch.no_grad():
        for _ in range(t_steps - 1):
            train = encode(ctx=ForwardContext("spiking", ctx.tokens), back=SpikeTrain(zero, pulses))[0]
            pulses = torch.cat([zero[None], train.pulses])  # nothing arrives at the first step
    if not torch.is_grad_enabled():
        return SpikeTrain(zero, pulses)  # a simulation without gradient looks at no values
    real = ctx.tokens[..., None].to(zero.dtype)
    with torch.no_grad():
        sent = encode(ctx=ForwardContext("spiking", ctx.tokens), back=SpikeTrain(zero, pulses))[0].value * real
        gap = (asr(pulses[:t_steps], leak) * real - sent).norm() / sent.norm().clamp(min=1e-12)
    solved |= {"steps": 0, "residual": gap.item()}

    def network(z: Tensor) -> Tensor:
        return encode(ctx=ForwardContext("spiking", ctx.tokens), back=SpikeTrain(z, pulses))[0].value * real

    return SpikeTrain(implicit(network, sent, solved), pulses)
