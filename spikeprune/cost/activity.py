"""Firing rates and sparsity of a student's spiking sites, from the same spike counts that `operations.count` reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Activity:
    """Spikes, and places where one could have been, of each site over any number of batches. `a + b` joins two."""

    spikes: dict[str, Tensor]
    places: dict[str, Tensor]

    def __add__(self, other: Activity) -> Activity:
        return Activity(
            spikes={site: value + other.spikes[site] for site, value in self.spikes.items()},
            places={site: value + other.places[site] for site, value in self.places.items()},
        )

    def rates(self) -> dict[str, float]:
        """Mean |s| per real token, kept channel and step of each site, in [0, 1]; sites pruned away are left out."""
        return {site: (self.spikes[site] / n).item() for site, n in self.places.items() if n}

    def rate(self) -> float:
        """The same over all sites together: wide sites and long trains weigh more."""
        return (sum(self.spikes.values()) / sum(self.places.values())).item()

    def sparsity(self) -> float:
        """Share of places without a spike (NeuroBench's activation sparsity, arXiv 2304.04640)."""
        return 1.0 - self.rate()


def kept_channels(widths: Mapping[str, int], *, heads: Tensor, ffn: Tensor) -> dict[str, Tensor]:
    """Of each site's channels `[D]`, as many as `widths` says, 1 for those that are kept and 0 for a pruned head's and
    for a pruned neuron. Masks as in `count`; a compacted site is narrower than its mask."""
    head_size, found = widths["embedding"] // heads.shape[1], {}
    for site, width in widths.items():
        layer, name = place(site)
        if name in ("query", "key", "value", "context"):
            found[site] = heads[layer].repeat_interleave(head_size)[:width]
        elif name == "intermediate":
            found[site] = ffn[layer][:width]
        else:
            found[site] = heads.new_ones(width)
    return found


def place(site: str) -> tuple[int, str]:
    """Encoder layer, -1 for the embedding's, and the name of a site there."""
    _, _, rest = site.partition(".")
    layer, _, name = rest.partition(".")
    return (int(layer), name) if name else (-1, site)


def activity(
    counts: Mapping[str, Tensor], lengths: Tensor, *, heads: Tensor, ffn: Tensor, t_steps: Sequence[int] | Tensor
) -> Activity:
    """Spikes of one batch, arguments as in `count`. Steps after a layer's own T_l are no places."""
    tokens, found = lengths.double().sum(), {}
    widths = {site: spikes.shape[-1] for site, spikes in counts.items()}
    for site, keep in kept_channels(widths, heads=heads, ffn=ffn).items():
        if site == "pooled":  # a copy of the last layer's
            continue
        steps, keep = int(t_steps[place(site)[0] + 1]), keep.to(tokens)
        found[site] = (counts[site][:steps].double() @ keep).sum(), tokens * keep.sum() * steps
    return Activity(*({site: pair[i] for site, pair in found.items()} for i in (0, 1)))
