"""Firing rates of a student's spiking layers, from the same spike counts that `operations.count` reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Activity:
    """Spikes of each spiking layer, and places where one could have been, over any number of batches. `a + b` joins
    two."""

    spikes: dict[str, Tensor]
    places: dict[str, Tensor]

    def __add__(self, other: Activity) -> Activity:
        return Activity(
            spikes={name: value + other.spikes[name] for name, value in self.spikes.items()},
            places={name: value + other.places[name] for name, value in self.places.items()},
        )

    def rates(self) -> dict[str, float]:
        """Mean |s| per real token, kept channel and step of each layer, in [0, 1]; pruned layers are left out."""
        return {name: (self.spikes[name] / n).item() for name, n in self.places.items() if n}

    def rate(self) -> float:
        """The same over all spiking layers together: wide ones and long trains weigh more."""
        return (sum(self.spikes.values()) / sum(self.places.values())).item()


def kept_channels(widths: Mapping[str, int], *, heads: Tensor, ffn: Tensor) -> dict[str, Tensor]:
    """Of each spiking layer's channels `[D]`, as many as `widths` says, 1 for those that are kept and 0 for a
    pruned head's and for a pruned neuron. Masks as in `count`; a compacted layer is narrower than its mask."""
    head_size, found = widths["embedding"] // heads.shape[1], {}
    for name, width in widths.items():
        layer, kind = place(name)
        if kind in ("query", "key", "value", "context"):
            found[name] = heads[layer].repeat_interleave(head_size)[:width]
        elif kind == "intermediate":
            found[name] = ffn[layer][:width]
        else:
            found[name] = heads.new_ones(width)
    return found


def place(name: str) -> tuple[int, str]:
    """A spiking layer's name -> its encoder layer, -1 for the embedding's, and its name there."""
    _, _, rest = name.partition(".")
    layer, _, kind = rest.partition(".")
    return (int(layer), kind) if kind else (-1, name)


def activity(
    counts: Mapping[str, Tensor], lengths: Tensor, *, heads: Tensor, ffn: Tensor, t_steps: Sequence[int] | Tensor
) -> Activity:
    """Spikes of one batch, arguments as in `count`. Steps after a layer's own T_l are no places."""
    tokens, found = lengths.double().sum(), {}
    widths = {name: spikes.shape[-1] for name, spikes in counts.items()}
    for name, keep in kept_channels(widths, heads=heads, ffn=ffn).items():
        if name == "pooled":  # a copy of the last layer's
            continue
        steps, keep = int(t_steps[place(name)[0] + 1]), keep.to(tokens)
        found[name] = (counts[name][:steps].double() @ keep).sum(), tokens * keep.sum() * steps
    return Activity(*({name: pair[i] for name, pair in found.items()} for i in (0, 1)))
