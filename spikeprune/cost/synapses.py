"""The synapses that a spike meets, and what one spike of each spiking layer costs in additions.

Legend: D hidden, H heads, d = D/H, F neurons, L layers, T_l steps of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spikeprune.cost.shapes import Shape, SynapseCounts


def readers(
    *, shape: Shape, heads: Tensor, ffn: Tensor, links: SynapseCounts | None
) -> tuple[Tensor, Tensor | float, Tensor, Tensor | float]:
    """The synapses of a layer by their source: from a channel below to q, k and v, from one of the context, of h and
    of the intermediate layer. A number for all channels, or with `links` one for each; heads [H] and ffn [F] masks,
    without links those of several layers too, [L,H] and [L,F]."""
    if links is None:
        return 3 * shape.head_size * heads.sum(-1), shape.hidden, ffn.sum(-1), shape.hidden
    qkv, out, up, down = (part.to(heads) for part in links)
    return qkv @ heads[: qkv.shape[1]], out, up @ ffn[: up.shape[1]], down


def fan_out(
    *, shape: Shape, heads: Tensor, ffn: Tensor, tokens: Tensor | float, links: Sequence[SynapseCounts] | None = None
) -> dict[str, Tensor]:
    """Additions that one spike of each spiking layer costs, by the rule of `count` for `accumulate` and `per_step`.

    heads [L,H] and ffn [L,F] masks; `tokens`: queries that attend, n; `links` as in `count`. A number for all channels,
    or one for each [D].
    What a loss on firing needs: `T_l * mean |ASR| * fan_out`, summed over channels and spiking layers, are a
    token's AC; with feedback a little more than that, since the spikes of the last step come back too late; with
    `shape.membrane` without the residuals, which no firing changes.
    """
    own, wide = 0.0 if shape.membrane else 1.0, heads.new_full((), shape.hidden)
    if links is None:  # all layers at once: a GPU takes as long over each small tensor as over a matrix
        qkv, _, up, _ = readers(shape=shape, heads=heads, ffn=ffn, links=None)
        layers = [(q, wide, u, wide) for q, u in zip((qkv + own).unbind(), (up + own).unbind(), strict=True)]
    else:
        found = [readers(shape=shape, heads=heads[i], ffn=ffn[i], links=links[i]) for i in range(shape.layers)]
        layers = [(qkv + own, out, up + own, down) for qkv, out, up, down in found]
    last = (1.0 if shape.pooling == "mean" else 0.0) + shape.hidden * shape.feedback
    sent = [*(qkv for qkv, *_ in layers), torch.full_like(wide, last)]  # over a spike of the embedding and each layer
    attended = (tokens * heads.repeat_interleave(shape.head_size, -1)).unbind()
    costs = {"embedding": sent[0]}
    for i, (_, out, up, down) in enumerate(layers):
        spiking_layers = {"key": attended[i], "value": attended[i], "context": out, "attention": up}
        spiking_layers |= {"intermediate": down, "output": sent[i + 1]}
        costs |= {f"layers.{i}.{name}": cost for name, cost in spiking_layers.items()}
    return costs


def unfired(*, shape: Shape, t_steps: Sequence[int], coding: str) -> list[int]:
    """A token's additions in each layer that no spike causes, by the rule of `count`: those of `shape.membrane`'s
    residuals."""
    once = 2 * shape.hidden * shape.membrane
    return [once * (1 if coding == "accumulate" else t) for t in t_steps[1:]]
