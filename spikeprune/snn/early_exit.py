"""Spike trains that end before their time: in `accumulate` a constant current drives T steps, and a sample whose ASR
has settled need not wait for the last of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from spikeprune.snn.neurons import Neuron, steps


class Trains(NamedTuple):
    a: Tensor  # ASR of each sample over the steps that it took [B, N, D]
    stops: Tensor  # how many they were, 1 to T, long [B]
    counts: Tensor  # spikes on real tokens, zero after the stop [T, B, D]
    first: Tensor  # the first token's alone [T, B, D]


@torch.no_grad()
def until_settled(
    x: Tensor,
    theta: Tensor,
    t_steps: int,
    *,
    neuron: Neuron,
    leak: float,
    tokens: Tensor,
    alive: Tensor | None,
    bound: float,
) -> Trains:
    """Fire on the constant currents `x [B, N, D]`, each sample until its ASR changes by less than `bound`.

    The change at step t is `|a[t] - a[t-1]|`, averaged over the sample's real tokens (`tokens [B, N]`) and the channels
    that are `alive` (0/1, `[D]` or `[B, 1, D]`). The first possible stop is at step 2; at the last step nothing is
    asked. What a stopped sample would have fired later changes nothing.
    """
    weights = tokens[..., None].double()  # so that no bound is passed by rounding
    weights = weights.expand_as(x) if alive is None else weights * alive
    size = weights.sum((1, 2)).clamp(min=1)  # [B]
    live = torch.ones(len(x), dtype=torch.bool, device=x.device)
    stops = torch.zeros(len(x), dtype=torch.long, device=x.device)
    counts = x.new_zeros(t_steps, len(x), x.shape[-1])
    first = torch.zeros_like(counts)
    total, a, norm = torch.zeros_like(x), torch.zeros_like(x), 0.0
    for t, s in enumerate(steps((x for _ in range(t_steps)), theta, neuron, leak)):
        total, norm = leak * total + s, leak * norm + 1
        now = total / norm
        change = ((now - a).abs() * weights).sum((1, 2)) / size
        a = torch.where(live[:, None, None], now, a)
        counts[t] = torch.einsum("bnd,bn->bd", s.abs(), tokens.to(s.dtype)) * live[:, None]
        first[t] = s[:, 0].abs() * live[:, None]
        stops += live
        if t:
            live = live & (change >= bound)
        if not live.any():
            break
    return Trains(a, stops, counts, first)
