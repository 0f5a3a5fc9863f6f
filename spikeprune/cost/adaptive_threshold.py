"""What neurons cost whose threshold follows their input (`Neuron.gain`), beside the additions that every neuron causes.

A threshold that is a channel's own folds into the next weight matrix, and a spike adds a weight. One that changes with
the token does not fold: what a token's spikes have added up to is multiplied by the token's gain once the sum is done,
one MAC for each result and group of channels (a head's channels share a gain, everywhere else all do). So a spike is
still one addition. The gain itself takes one MAC a channel, for the squares, and a root.

Evaluated once in `accumulate` and at each of a layer's T steps in the synchronous codings, as the functions between the
spiking layers are. Legend and rows [L+2] as in `cost/operations.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spikeprune.cost.shapes import Shape


def gain_work(
    n: Tensor, *, shape: Shape, heads: Tensor, ffn: Tensor, steps: Sequence[int], coding: str
) -> tuple[Tensor, Tensor]:
    """(MACs [L+2], roots [L+2]) of all gains in sentences of `n [B]` real tokens; float64."""
    tokens, pairs, wide = n.sum(), n.square().sum(), shape.hidden
    times = [t if coding != "accumulate" else 1 for t in steps]
    mac = [tokens * wide * times[0]]  # the embedding's squares
    elementwise = [tokens * times[0]]
    for layer, t in enumerate(times[1:]):
        kept, neurons = heads[layer].sum(), ffn[layer].sum()
        channels, queries = kept * shape.head_size, shape.query == "spiking"
        squares = channels * (3 + queries) + 2 * wide + neurons  # (q,) k, v, c, then h and a', f
        past = 0 if shape.membrane else 2 * wide  # residuals of spikes: of the layer below, of h
        sums = 3 * channels + kept * wide + neurons + wide + past  # below to q, k, v; c; h; f
        attended = 0 if coding == "running_mean" else kept * (2 + queries)  # scores and weights; MACs there anyway
        mac.append((tokens * (squares + sums) + pairs * attended) * t)
        elementwise.append(tokens * (kept * (3 + queries) + 3) * t)
    results = n.new_tensor(float(len(n))) if shape.pooling == "cls" else tokens
    mac.append(results * wide * times[-1])  # the last layer's to the pooler, or to the mean
    elementwise.append(n.new_zeros(()))
    return torch.stack(mac), torch.stack(elementwise)
