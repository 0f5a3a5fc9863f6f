"""The synapses that a spike meets, and what one spike of each spiking layer costs in additions.

Legend: D hidden, H heads, d = D/H, F neurons, L layers, T_l steps of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from spikeprune.cost.shapes import Shape, SynapseCounts


def readers(
    *, shape: Shape, heads: Tensor, ffn: Tensor, links: SynapseCounts | None
) -> tuple[Tensor, Tensor | float, Tensor, Tensor | float]:
    """The synapses of a layer by their source: from a channel below to q, k and v, from one of the context, of h and
    of the intermediate layer. A number for all channels, or with `links` one for each; heads [H] and ffn [F] masks."""
    if links is None:
        return 3 * shape.head_size * heads.sum(), shape.hidden, ffn.sum(), shape.hidden
    qkv, out, up, down = (part.to(heads) for part in links)
    return qkv @ heads[: qkv.shape[1]], out, up @ ffn[: up.shape[1]], down


def fan_out(
    *, shape: Shape, heads: Tensor, ffn: Tensor, tokens: Tensor | float, links: Sequence[SynapseCounts] | None = None
) -> dict[str, Tensor | float]:
    """Additions that one spike of each spiking layer costs, by the rule of `count` for `accumulate` and `per_step`.

    heads [L,H] and ffn [L,F] masks; `tokens`: queries that attend, n; `links` as in `count`. A number for all channels,
    or one for each [D].
    What a loss needs to price firing: `T_l * mean |ASR| * fan_out`, summed over channels and spiking layers, are a
    token's AC; with feedback a little more than that, since the spikes of the last step come back too late; with
    `shape.membrane` without the residuals, which no firing changes.
    """
    own = 0.0 if shape.membrane else 1.0
    layers = [
        readers(shape=shape, heads=heads[i], ffn=ffn[i], links=None if links is None else links[i])
        for i in range(shape.layers)
    ]
    last = (1.0 if shape.pooling == "mean" else 0.0) + shape.hidden * shape.feedback
    sent = [*(qkv + own for qkv, *_ in layers), last]  # over a spike of the embedding's and of each layer's output
    costs: dict[str, Tensor | float] = {"embedding": sent[0]}
    for i, (_, out, up, down) in enumerate(layers):
        attended = tokens * heads[i].repeat_interleave(shape.head_size)
        spiking_layers = {"key": attended, "value": attended, "context": out, "attention": up + own}
        spiking_layers |= {"intermediate": down, "output": sent[i + 1]}
        costs |= {f"layers.{i}.{name}": cost for name, cost in spiking_layers.items()}
    return costs


def unfired(*, shape: Shape, t_steps: Sequence[int], coding: str) -> list[int]:
    """A token's additions in each layer that no spike causes, by the rule of `count`: those of `shape.membrane`'s
    residuals."""
    once = 2 * shape.hidden * shape.membrane
    return [once * (1 if coding == "accumulate" else t) for t in t_steps[1:]]
