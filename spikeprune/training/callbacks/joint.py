"""BudgetPruning: heads, neurons and time steps leave between epochs under one measured budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import lightning as L
from torch import Tensor

from spikeprune.cost.energy import Prices
from spikeprune.cost.shapes import Shape
from spikeprune.errors import InputError, known
from spikeprune.models.outputs import Outputs
from spikeprune.pruning.budget import TOLERANCE, Budget
from spikeprune.pruning.candidates import KINDS
from spikeprune.pruning.cost_meter import TARGETS, CostMeter
from spikeprune.pruning.estimates import BLOCK
from spikeprune.pruning.schedules import cubic
from spikeprune.training import distributed
from spikeprune.training.callbacks.schedule import EpochSchedule, adopt, agreed
from spikeprune.training.losses import drawn_loss, soft_loss

SENTENCES = 512  # training sentences that losses are estimated on
MEASURED = 1024  # training sentences that cost is measured on: the dev split is for the report
SLACK = 0.1  # share of the goal above it that the losses are trusted to bring back
MAX_PENALTY_SCALE = 16.0  # times the weight that the losses give to additions


class BudgetPruning(EpochSchedule):
    """Lowers the student's cost from what it is at the first decision to `share` of a reference, on a cubic schedule
    from epoch `begin` to epoch `settle`, and holds it there, since firing rates go on changing while the student
    trains. Two things lower and hold it:

    - the losses, where they price additions and name no limit: at each epoch's start they get a limit. Up to `settle`
      it is what the additions are, so that firing rates are held: pressed to the goal at once they bring the cost down
      nearly alone, in an epoch or two, and what the student knew goes with them. From there on it is what keeps to the
      goal, with a larger weight as long as that is not enough;
    - decisions, up to epoch `end`, after which the student only recovers: what is too dear leaves (from `settle` on,
      with such a limit, only what is too far above it), and where there is room again what is worth most comes back.

    When the last epoch ends the cost is measured, and what is still too dear leaves, as little as possible.

    `target` is one of `cost_meter.TARGETS`; `relative_to` dense (the teacher) or student (the uncompressed one).
    `reference` is what the uncompressed student costs in the meter's unit, None where no earlier stage has measured
    it: then what this one costs at the first decision. `measured` training sentences show costs, `sentences` show
    losses, varied as those that the stage trains on and answered once by the teacher.
    """

    CARRIED = ("start", "most_steps", "value", "held", "reference", "drift")  # by a checkpoint
    CARRIED += ("limit", "penalty_scale", "settled", "limited")

    def __init__(
        self,
        *,
        target: str,
        share: float,
        relative_to: str,
        candidates: Sequence[str],
        min_heads: int,
        min_ffn: int,
        batch_size: int,
        seed: int,
        shape: Shape,
        dense_shape: Shape,
        prices: Prices,
        begin: int,
        settle: int,
        end: int,
        block: int = BLOCK,
        sentences: int = SENTENCES,
        measured: int = MEASURED,
        reference: float | None = None,
    ):
        super().__init__(begin=begin, end=end)
        known("target", target, TARGETS)
        known("relative_to", relative_to, ("dense", "student"))
        for kind in candidates:
            known("candidate", kind, KINDS)
        self.target, self.share, self.relative_to = target, share, relative_to
        self.limits = {"kinds": tuple(candidates), "min_heads": min_heads, "min_ffn": min_ffn, "block": block}
        self.sentences, self.measured = sentences, measured
        self.batch_size, self.seed = batch_size, seed
        self.costs = {"target": target, "shape": shape, "dense_shape": dense_shape, "prices": prices}
        self.settle, self.reference = settle, reference
        self.start: float | None = None  # the cost before the first decision
        self.most_steps: list[int] | None = None  # the steps then
        self.value: float | None = None  # the cost as it was last measured
        self.held = False  # whether a decision has brought it to the goal
        self.limit: float | None = None  # of the losses' additions, where this sets it
        self.penalty_scale = 1.0  # times their weight
        self.settled = False  # whether the epoch before began with the cost held
        self.limited = -1  # last epoch that the limit was set for
        self.drift = 0.0  # by what share of the goal the cost was above it after the last step
        self.meter: CostMeter | None = None

    @property
    def goal(self) -> float:
        """The cost to end with, in the meter's unit; latency is whole steps, so the next below."""
        goal = self.share * (self.reference if self.relative_to == "student" else 1.0)
        return float(max(1, math.floor(goal + 1e-9))) if self.target == "latency" else goal

    def progress(self, epoch: int) -> float:
        return min(1.0, (epoch - self.begin + 1) / (self.settle - self.begin + 1))

    def scheduled(self, epoch: int) -> float:
        """The cost that a decision at an epoch's start leads to."""
        return max(self.goal, cubic(self.progress(epoch), self.start, self.goal))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.hand_over(pl_module)  # of a leg that ended within an epoch

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        if not trainer.sanity_checking and self.begin <= trainer.current_epoch > self.limited:
            if trainer.current_epoch > self.decided:
                self.value = self.metered(trainer, pl_module).value(pl_module.student)
            if self.sets_limit(pl_module):
                self.hold_rates(trainer, pl_module)
            self.limited = trainer.current_epoch

    def sets_limit(self, module: L.LightningModule) -> bool:
        losses = module.losses
        return self.target != "latency" and losses.additions > 0 and losses.additions_limit is None

    def hold_rates(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """The limit: while masks and steps stay, additions and cost follow the rates alone, so they are taken as
        proportional. The press: an epoch that began at the limit and ended above the goal had too little of it."""
        data, size = trainer.datamodule, self.batch_size
        batches = self.placed(data.fixed_batches(-(-self.sentences // size), size, self.seed), module)
        additions = agreed(module.objective.additions.mean(module.student, batches, module.forward_mode)).item()
        if self.settled and self.value > self.goal:
            self.penalty_scale = min(2 * self.penalty_scale, MAX_PENALTY_SCALE)
        self.settled = self.held
        self.limit = additions * self.way()
        self.hand_over(module)

    def way(self) -> float:
        """Of the present cost what firing rates are to leave by the next epoch's start."""
        return self.goal * (1 - TOLERANCE / 2) / self.value if self.held else 1.0

    def hand_over(self, module: L.LightningModule) -> None:
        if self.limit is not None:
            module.objective.additions.limit.fill_(self.limit)
            module.objective.additions.penalty_scale.fill_(self.penalty_scale)

    def decide(self, trainer: L.Trainer, module: L.LightningModule, progress: float) -> None:
        self.value = self.metered(trainer, module).value(module.student)
        first = self.start is None
        if first:
            self.start, self.most_steps = self.value, module.student.steps
            self.reference = self.start if self.reference is None else self.reference
            self.held = self.start <= self.goal * (1 + TOLERANCE)
        if self.held and -TOLERANCE <= self.value / self.goal - 1 <= self.slack(module):
            return
        budget = self.budget(trainer, module)
        if first:
            self.refuse_the_unreachable(budget)
        self.value = budget.lower_to(self.scheduled(trainer.current_epoch))
        if progress == 1.0:
            self.value, self.held = budget.raise_to(self.goal), True

    def slack(self, module: L.LightningModule) -> float:
        """How far above the goal masks and steps stay as they are: with a limit the rates are expected to come back."""
        return SLACK if self.sets_limit(module) else TOLERANCE

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch == trainer.max_epochs - 1 and not trainer.sanity_checking:
            self.value = self.metered(trainer, pl_module).value(pl_module.student)
            self.drift = self.value / self.goal - 1
            if not -TOLERANCE <= self.drift <= 0:
                budget = self.budget(trainer, pl_module)
                budget.lower_to(self.goal)
                self.value = budget.raise_to(self.goal)
                adopt(pl_module.student)
        student = pl_module.student
        pl_module.log("compress/budget", self.value)
        pl_module.log("compress/heads", student.heads.mean())
        pl_module.log("compress/ffn", student.ffn.mean())
        pl_module.log("compress/t_steps", sum(student.steps) / len(student.steps))

    def budget(self, trainer: L.Trainer, module: L.LightningModule) -> Budget:
        """The student as it is now, with sentences on its device."""
        size = self.batch_size
        batches = trainer.datamodule.fixed_batches(-(-self.sentences // size), size, self.seed)
        batches = self.placed(batches, module)
        if module.losses.soft:  # the teacher answers changed sentences too; a true label would not fit them
            batches = [module.varied(batch) for batch in batches]
        lessons = {id(batch): module.teacher_outputs(batch) for batch in batches} if module.losses.soft else {}

        def sample_loss(batch: dict[str, Tensor], outputs: Outputs) -> Tensor:
            return module.sample_loss(batch, outputs, lessons.get(id(batch)))

        def distance(answers: Tensor, others: Tensor) -> Tensor:
            how = {"temperature": module.losses.temperature, "regression": module.task.regression}
            return (module.losses.soft or 1.0) * soft_loss(answers, others, **how)

        return Budget(
            module.student,
            batches,
            sample_loss,
            lambda _, outputs: drawn_loss(outputs.logits.float(), regression=module.task.regression),
            distance,
            self.metered(trainer, module),
            **self.limits,
            most_steps=self.most_steps or (),
            mode=module.forward_mode,
            mean=agreed,
        )

    def metered(self, trainer: L.Trainer, module: L.LightningModule) -> CostMeter:
        if self.meter is None:
            sentences = trainer.datamodule.sample_batches(self.measured, self.batch_size, self.seed)
            self.meter = CostMeter(self.placed(sentences, module), mean=agreed, **self.costs)
        return self.meter

    @staticmethod
    def placed(batches: list[dict[str, Tensor]], module: L.LightningModule) -> list[dict[str, Tensor]]:
        return [{key: value.to(module.device) for key, value in batch.items()} for batch in batches]

    def refuse_the_unreachable(self, budget: Budget) -> None:
        if self.start <= self.goal:
            return
        lowest = budget.lowest()
        distributed.first(lambda: self.refuse_below(lowest))

    def refuse_below(self, lowest: float) -> None:
        if lowest > self.goal:
            kinds = ", ".join(self.limits["kinds"])
            raise InputError(
                f"compress.target_value = {self.share:g}: with everything removed that compress.joint.candidates "
                f"[{kinds}] and the floors of compress.spatial allow, this student still has "
                f"{self.in_words(lowest, up=True)}; that is the lowest value to ask for"
            )

    def in_words(self, value: float, up: bool = False) -> str:
        """`0.0213 of the dense teacher's energy`, for latency with the steps. `up`: rounded so that it can be asked."""
        unit = 1.0 if self.relative_to == "dense" else self.reference
        share = math.ceil(value / unit * 1e4) / 1e4 if up else value / unit
        whose = "the dense teacher's" if self.relative_to == "dense" else "the uncompressed student's"
        what = {"ac": "additions", "energy": "energy", "latency": f"latency ({value:.0f} steps)"}[self.target]
        if self.target == "ac" and self.relative_to == "dense":
            whose, what = "the dense teacher's", "multiplications, in additions"
        return f"{share:.4g} of {whose} {what}"

    def report(self, reported: float) -> dict[str, Any]:
        """What the budget came to. `reported`: the student's cost in the meter's unit as the stage's record has it,
        which is counted on the dev split."""
        unit = 1.0 if self.relative_to == "dense" else self.reference
        off = self.value / self.goal - 1
        why = ""
        if off > 0:
            why = "nothing is left that the floors allow to remove"
        elif -off > TOLERANCE and self.start is not None and self.start <= self.goal:
            why = "the stage began below the target and nothing that could come back lowers the loss"
        elif -off > TOLERANCE:
            why = "the next candidate to come back would exceed the target or not lower the loss"
        elif abs(reported / self.goal - 1) > TOLERANCE:
            why = f"the budget was measured on {self.meter.sentences} training sentences, the report on the dev split"
        return {
            "target": self.target,
            "of": self.relative_to,
            "share": self.share,
            "goal": self.goal / unit,
            "reached": self.value / unit,
            "reported": reported / unit,
            "drift": self.drift,
            "within": abs(reported / self.goal - 1) <= TOLERANCE,
            "why_not": why,
        }

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), **{name: getattr(self, name) for name in self.CARRIED}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        for name in self.CARRIED:
            setattr(self, name, state[name])


def cost_in_unit(target: str, cost: dict[str, float], dense: dict[str, float]) -> float:
    """A measured student's `cost` in the unit of `CostMeter`, given its dense teacher's."""
    if target == "latency":
        return float(cost["latency_steps"])
    return cost["ac"] / dense["mac"] if target == "ac" else cost["energy_pj"] / dense["energy_pj"]
