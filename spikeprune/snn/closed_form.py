"""A spike train under a constant current, in closed form: how often each neuron fires in all, without the train.

In `accumulate` every site is driven by a constant current, so what it sends and how many spikes that takes follow from
the current alone: an evaluation costs one matrix product per layer and no pass over time, whatever T is. A LIF neuron
has no closed form; it takes its T element-wise steps, but leaves no train behind either.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from spikeprune.snn.neurons import Neuron, leak_weights, steps

BLOCK = 2**20  # numbers (4 MiB), which a third-level cache keeps; for fewer, waking a second core does not pay


def blocks(x: Tensor) -> Iterator[slice]:
    """Runs of samples of `x [B, N, D]` that the cache holds, on the CPU; elsewhere all samples at once."""
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
    tokens, `tokens [B, N]`, before the mask; None without tokens. theta `[D]` or `[1]`; mask broadcasts to x.
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
