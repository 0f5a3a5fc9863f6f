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


def activity(
    counts: Mapping[str, Tensor], lengths: Tensor, *, heads: Tensor, ffn: Tensor, t_steps: Sequence[int] | Tensor
) -> Activity:
    """Spikes of one batch, arguments as in `count`. Steps after a layer's own T_l are no places."""
    tokens, found = lengths.double().sum(), {}
    head_size = counts["embedding"].shape[-1] // heads.shape[1]
    for site, spikes in counts.items():
        if site == "pooled":  # a copy of the last layer's
            continue
        width, steps = spikes.shape[-1], int(t_steps[0])  # a compacted site is narrower than its mask
        keep = tokens.new_ones(width)
        if site != "embedding":
            _, layer, name = site.split(".")
            steps = int(t_steps[int(layer) + 1])
            if name in ("query", "key", "value", "context"):
                keep = heads[int(layer)].to(keep).repeat_interleave(head_size)[:width]
            elif name == "intermediate":
                keep = ffn[int(layer)].to(keep)[:width]
        found[site] = (spikes[:steps].double() @ keep).sum(), tokens * keep.sum() * steps
    return Activity(*({site: pair[i] for site, pair in found.items()} for i in (0, 1)))
