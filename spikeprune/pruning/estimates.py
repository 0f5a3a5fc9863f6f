"""The loss and the saving of each candidate of a joint budget, estimated and measured.

Losses have one unit for all kinds, since all are measured on the same sentences, without the candidate: the rise of the
loss, or the distance of the outputs from those before, whichever is larger. On a few hundred sentences a poorer student
may have the lower loss; a unit whose removal changes the outputs was still in use.

- one step of one layer is measured by itself;
- of each layer the heads or neurons of the smallest estimate (half the Fisher information, the second-order estimate of
  Kwon et al. 2022, eq. 8, over the saving) are removed together for one measurement, which is divided among them by
  their Fisher information. Its labels are drawn from the student's own distribution: where the student agrees with its
  teacher the distillation loss has no gradient, but a curvature.

Returning candidates are ranked by the fall of the loss, units by slope and curvature together: a pruned unit is far
from a minimum of the loss over its mask.

An estimate is valid near the network that it was made on. A measurement is valid as long as weights, sentences and
teacher outputs stay, so for each state of masks and steps cost and loss are measured once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from spikeprune.models.modeling import SpikingBert
from spikeprune.pruning.candidates import KINDS, Candidate
from spikeprune.pruning.cost_meter import CostMeter, CostReading
from spikeprune.pruning.statistics import SampleLoss, Statistics, collect, losses_at

BLOCK = 16  # feed-forward neurons that are removed together


@dataclass
class RemovalEstimates:
    """A student, the kinds of its candidates, the sentences that losses are measured on, and the meter of costs."""

    student: SpikingBert
    batches: Sequence[dict[str, Tensor]]
    sample_loss: SampleLoss
    drawn_loss: SampleLoss  # as `sample_loss`, of a label drawn from the outputs: its squared gradient is curvature
    distance: Callable[[Tensor, Tensor], Tensor]  # [S] of logits [S, C] from others, in the unit of `sample_loss`
    meter: CostMeter
    kinds: Sequence[str] = KINDS
    min_heads: int = 1
    min_ffn: int = 8
    most_steps: Sequence[int] = ()  # most steps in each position after a return; empty: the present ones
    block: int = BLOCK
    mode: str | None = None  # the forward that the student is trained with, as in `statistics.collect`
    mean: Callable[[Tensor], Tensor] = field(default=lambda x: x)  # over processes, so that all decide the same
    known: dict[tuple, Any] = field(default_factory=dict)  # (quantity, state) -> measurement, for these weights

    # ------------------------------------------------------------------------------------------------ instruments

    @property
    def value(self) -> float:
        return self._once("cost", lambda: self.meter.value(self.student))

    def reading(self) -> CostReading:
        """The cost and the share of each unit in it, for little more time than the cost alone."""
        reading = self._once("reading", lambda: self.meter.read(self.student))
        self._once("cost", lambda: reading.value)
        return reading

    def loss(self) -> float:
        return self.observed()[0]

    def observed(self) -> tuple[float, Tensor]:
        """The loss, and the logits `[S, C]`."""
        return self._once("loss", self._observe)

    def _observe(self) -> tuple[float, Tensor]:
        losses, logits = losses_at(self.student, self.student.steps, self.batches, self.sample_loss)
        return self.mean(losses.mean()).item(), logits

    def _once(self, quantity: str, measure: Callable[[], Any]) -> Any:
        """The measurement at the present masks and steps, made where it is not known yet."""
        masks = (mask.bool().cpu().numpy().tobytes() for mask in (self.student.heads, self.student.ffn))
        key = (quantity, *masks, *self.student.steps)
        if key not in self.known:
            self.known[key] = measure()
        return self.known[key]

    def mask(self, kind: str) -> Tensor:
        return getattr(self.student, kind)

    def state(self) -> tuple[Tensor, Tensor, list[int]]:
        return self.student.heads.clone(), self.student.ffn.clone(), list(self.student.steps)

    @torch.no_grad()
    def restore(self, state: tuple[Tensor, Tensor, list[int]]) -> None:
        self.student.heads.copy_(state[0])
        self.student.ffn.copy_(state[1])
        self.student.set_t_steps(state[2])

    @torch.no_grad()
    def apply(self, candidates: Iterable[Candidate], back: bool = False) -> None:
        """Remove the candidates, or return them (`back`)."""
        steps = list(self.student.steps)
        for c in candidates:
            if c.kind == "steps":
                for place in c.units:
                    steps[place] += 1 if back else -1
            else:
                self.mask(c.kind)[c.layer, list(c.units)] = float(back)
        self.student.set_t_steps(steps)

    def loss_with(self, candidates: Iterable[Candidate], back: bool = False) -> float:
        return self.observed_with(candidates, back)[0]

    def observed_with(self, candidates: Iterable[Candidate], back: bool = False) -> tuple[float, Tensor]:
        before = self.state()
        self.apply(candidates, back)
        try:
            return self.observed()
        finally:
            self.restore(before)

    def harm(self, candidates: Iterable[Candidate]) -> float:
        """The rise of the loss without them, or the distance of the outputs if that is larger; never below zero."""
        loss, logits = self.observed()
        loss_without, logits_without = self.observed_with(candidates)
        return max(loss_without - loss, self.mean(self.distance(logits_without, logits).mean()).item())

    def value_with(self, candidates: Iterable[Candidate], back: bool = False) -> float:
        before = self.state()
        self.apply(candidates, back)
        try:
            return self.value
        finally:
            self.restore(before)

    # ------------------------------------------------------------------------------------------------- candidates

    def candidates(self, share: float, back: bool = False) -> list[Candidate]:
        """Candidates for removal now (or for a return), estimated anew; of each layer about `share` of its units."""
        reading, now, found = self.reading(), self.loss(), []
        if {"heads", "ffn"} & set(self.kinds) and self.meter.target != "latency":
            stats = self.statistics(self.sample_loss if back else self.drawn_loss)
            for kind in ("heads", "ffn"):
                if kind in self.kinds:
                    found += self._units(kind, stats, reading, now, share, back)
        if "steps" in self.kinds:
            found += self._steps(reading, now, back)
        return found

    def statistics(self, sample_loss: SampleLoss) -> Statistics:
        return collect(self.student, self.batches, sample_loss, mode=self.mode)

    def _units(
        self, kind: str, stats: Statistics, reading: CostReading, now: float, share: float, back: bool
    ) -> Iterator[Candidate]:
        name = "head" if kind == "heads" else "ffn"
        importance = self.mean(getattr(stats, f"{name}_fisher")).double() / 2
        if back:  # the loss from 0 to 1, by its slope and its curvature
            importance = (-self.mean(getattr(stats, f"{name}_slope")).double() - importance).clamp(min=0)
        for layer, mask in enumerate(self.mask(kind)):
            saving = getattr(reading, kind)[layer].double()
            if back:  # a returning unit is taken to cost as much as the mean kept one
                saving = torch.full_like(saving, saving[mask > 0].mean().item()) if mask.any() else saving
            sizes, saved = importance[layer].tolist(), saving.tolist()
            pool = self._pool(kind, mask, importance[layer] / saving.clamp(min=1e-30), back)
            pool = [unit for unit in pool if saved[unit] > 0 and not (back and sizes[unit] == 0)]
            pool = pool[: max(1, round(share * (mask.sum().item() if back else len(pool))))]
            if not pool:
                continue
            group, total = Candidate(kind, layer, tuple(pool), 0.0, 0.0), sum(sizes[unit] for unit in pool)
            change = now - self.loss_with([group], back) if back else self.harm([group])
            if back and change <= 0:
                continue
            width = self.block if kind == "ffn" else 1
            for at in range(0, len(pool), width):
                units = pool[at : at + width]
                part = sum(sizes[unit] for unit in units) / total if total else len(units) / len(pool)
                yield Candidate(kind, layer, tuple(units), change * part, sum(saved[unit] for unit in units))

    def _pool(self, kind: str, mask: Tensor, ratio: Tensor, back: bool) -> list[int]:
        """Units that may be removed, the smallest `ratio` first, without as many of the largest as the floor keeps;
        or units that may return, the largest first."""
        order = ratio.argsort(descending=back, stable=True).tolist()
        alive = mask.tolist()
        if back:
            return [unit for unit in order if not alive[unit]]
        floor = {"heads": self.min_heads, "ffn": self.min_ffn}[kind]
        kept = [unit for unit in order if alive[unit]]
        return kept[: max(0, len(kept) - floor)]

    def _steps(self, reading: CostReading, now: float, back: bool) -> Iterator[Candidate]:
        steps, most = self.student.steps, self.most_steps or self.student.steps
        places = [(i,) for i, t in enumerate(steps) if (t < most[i] if back else t > 1)]
        if self.meter.target == "latency" and self.student.coding != "accumulate" and not back:
            longest = max(steps)  # synchronous layers: latency falls only if all the longest trains lose a step
            places = [tuple(i for i, t in enumerate(steps) if t == longest)] if longest > 1 else []
        for units in places:
            step = Candidate("steps", units[0], units, 0.0, 0.0)
            saving = abs(self.value_with([step], back) - reading.value)
            change = now - self.loss_with([step], back) if back else self.harm([step])
            if saving > 0 and not (back and change <= 0):
                yield Candidate("steps", units[0], units, change, saving)

    def lowest(self) -> float:
        """The measured cost without any candidate; the student itself stays as it is."""
        before, stats = self.state(), self.statistics(self.drawn_loss)
        fisher = {"heads": stats.head_fisher, "ffn": stats.ffn_fisher}
        removed = []
        for kind in ("heads", "ffn"):
            for layer, mask in enumerate(self.mask(kind) if kind in self.kinds else []):
                units = self._pool(kind, mask, self.mean(fisher[kind][layer]), back=False)
                removed.append(Candidate(kind, layer, tuple(units), 0.0, 0.0))
        try:
            self.apply(removed)
            if "steps" in self.kinds:
                self.student.set_t_steps([1] * len(before[2]))
            return self.value
        finally:
            self.restore(before)
