"""What each candidate of a joint budget would cost in loss and save in the budget's unit, estimated and measured.

Losses are of one unit for all kinds, since all are measured on the same sentences, with the candidate gone: by how much
the loss rises, or how far the answers move from those before where that is more. A few hundred sentences may well be
answered better by a poorer student; what moves its answers was not idle.

- one step of one layer is measured by itself;
- of each layer the heads or neurons that look cheapest (half the Fisher information, the second-order estimate of Kwon
  et al. 2022, eq. 8, over the saving) leave together for one measurement, which is shared out among them by their
  Fisher information. This is that of answers drawn from the student's own distribution: where it agrees with its
  teacher the distillation loss has no gradient, but a curvature.

What may come back is ranked by how much the loss falls, among units by slope and curvature together: a pruned unit is
nowhere near a minimum of its mask.

An estimate holds near the network that it was made on. A measurement holds as long as weights, sentences and lessons
stay, so of each state of masks and steps cost and loss are measured once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from spikeprune.models.modeling import SpikingBert
from spikeprune.models.outputs import Outputs
from spikeprune.pruning.candidates import KINDS, Candidate
from spikeprune.pruning.cost_meter import CostMeter, CostReading
from spikeprune.pruning.statistics import SampleLoss, Statistics, collect, loss_at

BLOCK = 16  # feed-forward neurons that leave together


@dataclass
class RemovalEstimates:
    """A student, what it may lose, and the two instruments: sentences that show losses, a meter that shows costs."""

    student: SpikingBert
    batches: Sequence[dict[str, Tensor]]
    sample_loss: SampleLoss
    drawn_loss: SampleLoss  # as `sample_loss`, of an answer drawn from the outputs: its squared gradient is curvature
    distance: Callable[[Tensor, Tensor], Tensor]  # [S] of answers [S, C] from others, in the unit of `sample_loss`
    meter: CostMeter
    kinds: Sequence[str] = KINDS
    min_heads: int = 1
    min_ffn: int = 8
    most_steps: Sequence[int] = ()  # what may come back goes up to this in each place; empty: what it has
    block: int = BLOCK
    mode: str | None = None  # the forward that the student is trained with, as in `statistics.collect`
    mean: Callable[[Tensor], Tensor] = field(default=lambda x: x)  # over processes, so that all decide the same
    known: dict[tuple, Any] = field(default_factory=dict)  # (what, state) -> what was measured, of these weights

    # ------------------------------------------------------------------------------------------------ instruments

    @property
    def value(self) -> float:
        return self._once("cost", lambda: self.meter.value(self.student))

    def reading(self) -> CostReading:
        """The cost with what each unit has in it, for little more than the cost alone."""
        reading = self._once("reading", lambda: self.meter.read(self.student))
        self._once("cost", lambda: reading.value)
        return reading

    def loss(self) -> float:
        return self.observed()[0]

    def observed(self) -> tuple[float, Tensor]:
        """The loss, and the answers `[S, C]` that have it."""

        def observe() -> tuple[float, Tensor]:
            answers = []

            def sample_loss(batch: dict[str, Tensor], outputs: Outputs) -> Tensor:
                answers.append(outputs.logits.float())
                return self.sample_loss(batch, outputs)

            loss = self.mean(loss_at(self.student, self.student.steps, self.batches, sample_loss)).item()
            return loss, torch.cat(answers)

        return self._once("loss", observe)

    def _once(self, what: str, measure: Callable[[], Any]) -> Any:
        masks = (mask.bool().cpu().numpy().tobytes() for mask in (self.student.heads, self.student.ffn))
        key = (what, *masks, *self.student.steps)
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
        """Take the candidates away, or bring them `back`."""
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
        """By how much the loss rises without them, or how far the answers move if that is more; never below zero."""
        loss, answers = self.observed()
        then, others = self.observed_with(candidates)
        return max(then - loss, self.mean(self.distance(others, answers).mean()).item())

    def value_with(self, candidates: Iterable[Candidate], back: bool = False) -> float:
        before = self.state()
        self.apply(candidates, back)
        try:
            return self.value
        finally:
            self.restore(before)

    # ------------------------------------------------------------------------------------------------- candidates

    def candidates(self, share: float, back: bool = False) -> list[Candidate]:
        """What may leave now (or come back), estimated anew; of each layer about `share` of the units that could."""
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
        worth = self.mean(getattr(stats, f"{name}_fisher")).double() / 2
        if back:  # the loss from 0 to 1, by its slope and its curvature
            worth = (-self.mean(getattr(stats, f"{name}_slope")).double() - worth).clamp(min=0)
        for layer, mask in enumerate(self.mask(kind)):
            saving = getattr(reading, kind)[layer].double()
            if back:  # it will fire like its neighbours
                saving = torch.full_like(saving, saving[mask > 0].mean().item()) if mask.any() else saving
            sizes, saved = worth[layer].tolist(), saving.tolist()
            pool = self._pool(kind, mask, worth[layer] / saving.clamp(min=1e-30), back)
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
        """Units that may leave, the cheapest first, without the floor's worth of the dearest; or that may come back,
        the dearest first."""
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
            longest = max(steps)  # all tick together: only the longest trains together are waited for
            places = [tuple(i for i, t in enumerate(steps) if t == longest)] if longest > 1 else []
        for units in places:
            step = Candidate("steps", units[0], units, 0.0, 0.0)
            saving = abs(self.value_with([step], back) - reading.value)
            change = now - self.loss_with([step], back) if back else self.harm([step])
            if saving > 0 and not (back and change <= 0):
                yield Candidate("steps", units[0], units, change, saving)

    def lowest(self) -> float:
        """The measured cost with everything gone that may go, the student left as it is."""
        before, stats = self.state(), self.statistics(self.drawn_loss)
        fisher = {"heads": stats.head_fisher, "ffn": stats.ffn_fisher}
        gone = []
        for kind in ("heads", "ffn"):
            for layer, mask in enumerate(self.mask(kind) if kind in self.kinds else []):
                units = self._pool(kind, mask, self.mean(fisher[kind][layer]), back=False)
                gone.append(Candidate(kind, layer, tuple(units), 0.0, 0.0))
        try:
            self.apply(gone)
            if "steps" in self.kinds:
                self.student.set_t_steps([1] * len(before[2]))
            return self.value
        finally:
            self.restore(before)
