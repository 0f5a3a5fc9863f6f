"""Gates become masks and time steps: while they are learnt, when they are final, and where the cost has moved since."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spikeprune.models.modeling import SpikingBert
from spikeprune.pruning.budget import CostMeter
from spikeprune.pruning.gates import floor_of, keep_within, masks_of, set_masks, shorten
from spikeprune.pruning.statistics import weight_norms
from spikeprune.training.gates import Gates


@dataclass(frozen=True, kw_only=True)
class Hardening:
    """Changes the masks and steps of the student of `gates`, at costs that `meter` measures.

    kinds               that may be removed
    min_heads, min_ffn  kept in every layer
    """

    gates: Gates
    meter: CostMeter
    kinds: Sequence[str]
    min_heads: int
    min_ffn: int

    @property
    def student(self) -> SpikingBert:
        return self.gates.student

    def expose(self) -> None:
        """Masks and steps as the gates have them now."""
        settled = self.gates.settled()
        closed = (settled[2] < 0.5).nonzero()[:, 0].tolist()
        if closed:
            shorten(self.student, closed)
            self.gates.reopen(closed)
        units = torch.cat([part.flatten() for part in settled[:2]])
        opened = (units >= 0.5).to(self.student.heads)
        set_masks(self.student, torch.maximum(opened, self.floor(self.scores())))

    def harden(self, goal: float) -> float:
        """The settled gates become weights, masks and steps within the goal; nothing is learnt by gates any more.
        Returns the cost."""
        self.gates.fold()
        self.expose()
        scores = self.scores()
        floor = self.floor(scores)
        set_masks(self.student, floor)
        while self.meter.value(self.student) > goal and "steps" in self.kinds and max(self.student.steps) > 1:
            places = self.least_steps()
            shorten(self.student, places)
            self.gates.reopen(places)
        self.gates.learning = False
        return keep_within(self.student, scores, floor, self.meter, goal)

    def adjust(self, fisher: Tensor, goal: float) -> float:
        """Remove the units of the smallest Fisher information `[L H + L F]` for their saving, or return those of the
        largest. Returns the cost."""
        saving = torch.cat([part.flatten() for part in self.meter.savings(self.student)]).to(fisher)
        kept = masks_of(self.student) > 0
        scores = torch.where(kept, fisher / saving.clamp(min=1e-30), -1 / fisher.clamp(min=1e-30))
        scores = self.without_pruned(scores)
        return keep_within(self.student, scores, self.floor(scores), self.meter, goal)

    def lowest(self) -> float:
        """The measured cost of the floors, in single steps; the student itself stays as it is."""
        student, norms = self.student, weight_norms(self.student)
        masks, steps = masks_of(student), list(student.steps)
        scores = self.without_pruned(torch.cat([norms["head_weight"].flatten(), norms["ffn_weight"].flatten()]))
        set_masks(student, self.floor(scores))
        student.set_t_steps([1] * len(steps) if "steps" in self.kinds else steps)
        value = self.meter.value(student)
        set_masks(student, masks)
        student.set_t_steps(steps)
        return value

    def scores(self) -> Tensor:
        """`[L H + L F]`: by which units stay."""
        return self.without_pruned(self.gates.log_alpha.detach()[: sum(self.gates.sizes[:2])])

    def without_pruned(self, scores: Tensor) -> Tensor:
        """-inf for units that were pruned before the stage."""
        return scores.masked_fill(self.gates.allowed[: len(scores)] == 0, -torch.inf)

    def floor(self, scores: Tensor) -> Tensor:
        fixed = (self.gates.allowed - self.gates.gated)[: len(scores)]
        return floor_of(self.student, scores, fixed, min_heads=self.min_heads, min_ffn=self.min_ffn)

    def least_steps(self) -> list[int]:
        """The places whose steps leave next: that of the lowest gate; of synchronous layers, whose latency is that of
        the longest, all the longest."""
        steps = self.student.steps
        if self.meter.target == "latency" and self.student.coding != "accumulate":
            return [i for i, t in enumerate(steps) if t == max(steps)]
        gates = self.gates.log_alpha.detach()[sum(self.gates.sizes[:2]) :].tolist()
        return [min((i for i, t in enumerate(steps) if t > 1), key=lambda i: gates[i])]
