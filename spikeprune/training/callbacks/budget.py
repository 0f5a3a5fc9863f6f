"""BudgetPruning: heads, neurons and time steps are removed between epochs under one measured budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import lightning as L
from torch import Tensor

from spikeprune.cost.energy import PRICES, Prices
from spikeprune.cost.shapes import Shape
from spikeprune.errors import InputError, known
from spikeprune.models import shape as shapes
from spikeprune.models.outputs import Outputs
from spikeprune.pruning.budget import TOLERANCE, Budget
from spikeprune.pruning.budget_report import budget_record, goal_of, in_words, shortfall
from spikeprune.pruning.candidates import KINDS
from spikeprune.pruning.cost_meter import TARGETS, CostMeter
from spikeprune.pruning.estimates import BLOCK
from spikeprune.pruning.schedules import cubic
from spikeprune.training import distributed
from spikeprune.training.additions import AdditionsTerm
from spikeprune.training.callbacks.schedule import EpochSchedule, adopt, agreed, last_decision
from spikeprune.training.losses import drawn_loss
from spikeprune.training.protocol import (
    as_trained,
    cost_batches,
    decision_batches,
    forward_mode,
    output_distance,
    student_of,
)
from spikeprune.training.rate_limit import RateLimit

SENTENCES = 512  # training sentences that losses are estimated on
MEASURED = 1024  # training sentences that cost is measured on: the dev split is for the report
SLACK = 0.1  # share of the goal above it that a limit of the losses is trusted to remove
SETTLED = 0.5  # share of the epochs after which the goal is reached, where `settle` is not given
RECOVER = 0.25  # last share of the epochs that only trains, where `end` is not given


class BudgetPruning(EpochSchedule):
    """Lowers the student's cost to `share` of a reference, on a cubic schedule from epoch `begin` to epoch `settle`,
    and keeps it there, since firing rates go on changing while the student trains.

    - Up to epoch `end` decisions remove the candidates of the smallest loss for their saving while the cost is above
      the schedule, and return the most useful ones while it is below the goal (`pruning.budget`).
    - Where the loss has a term for additions without a limit (`PrunableModule.limitable_additions`), each epoch begins
      with a new limit: before `settle` the present additions, so that firing rates stay; after it those that keep to
      the goal, with a penalty that doubles while that is not enough (`training.rate_limit`). Decisions then remove
      only what is more than SLACK above the goal.
    - When the last epoch ends the cost is measured again, and a remaining excess is removed.

    target              ac (additions), energy or latency: one of `cost_meter.TARGETS`
    share               of the reference's cost, to end with
    relative_to         dense (the dense teacher) or student (the uncompressed one)
    reference           the uncompressed student's cost in the meter's unit; None: its cost at the first decision
    candidates          kinds that may be removed, of `candidates.KINDS`
    min_heads, min_ffn  kept in every layer; `block`: neurons that are removed together
    sentences, measured training sentences that losses and costs are measured on, in batches of `batch_size`
    prices              energy of one addition and one multiply-accumulate
    dense_shape         of the teacher; None: of the dense BERT of the student's sizes

    Raises ValueError for an unknown name, and InputError for a share that the floors do not allow.
    Example: `Trainer(callbacks=[BudgetPruning(target="energy", share=0.02)])`
    """

    STATE = ("start", "most_steps", "value", "reached", "reference", "drift", "limited_epoch")  # in a checkpoint

    def __init__(
        self,
        *,
        target: str = "energy",
        share: float,
        relative_to: str = "dense",
        candidates: Sequence[str] = KINDS,
        min_heads: int = 1,
        min_ffn: int = 8,
        batch_size: int = 32,
        seed: int = 0,
        dense_shape: Shape | None = None,
        prices: Prices = PRICES["fp32"],
        begin: int = 0,
        settle: int | None = None,
        end: int | None = None,
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
        self.kinds, self.min_heads, self.min_ffn, self.block = tuple(candidates), min_heads, min_ffn, block
        self.sentences, self.measured = sentences, measured
        self.batch_size, self.seed = batch_size, seed
        self.dense_shape, self.prices = dense_shape, prices
        self.settle, self.reference = settle, reference
        self.start: float | None = None  # the cost before the first decision
        self.most_steps: list[int] | None = None  # the steps then
        self.value: float | None = None  # the cost at the last measurement
        self.reached = False  # whether a decision has brought it to the goal
        self.drift = 0.0  # the cost after the last step over the goal, less one
        self.limited_epoch = -1  # last epoch that the limit was set for
        self.rate_limit = RateLimit()
        self.meter: CostMeter | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        given = self.end is not None
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        epochs = trainer.max_epochs
        if not given:
            self.end = max(self.begin, epochs - 1 - max(1, round(RECOVER * epochs)))
        if self.settle is None:
            self.settle = min(max(self.begin, last_decision(SETTLED, epochs)), self.end)

    @property
    def unit(self) -> float:
        """The reference's cost, in the meter's unit."""
        return self.reference if self.relative_to == "student" else 1.0

    @property
    def goal(self) -> float:
        return goal_of(self.target, self.share, self.unit)

    def progress(self, epoch: int) -> float:
        return min(1.0, (epoch - self.begin + 1) / (self.settle - self.begin + 1))

    def scheduled(self, epoch: int) -> float:
        """The cost that a decision at an epoch's start leads to."""
        return max(self.goal, cubic(self.progress(epoch), self.start, self.goal))

    # ------------------------------------------------------------------------------------------------------ decisions

    def decide(self, trainer: L.Trainer, module: L.LightningModule, progress: float) -> None:
        student = student_of(module)
        self.value = self.cost_meter(trainer, module).value(student)
        first = self.start is None
        if first:
            self.start, self.most_steps = self.value, student.steps
            self.reference = self.start if self.reference is None else self.reference
            self.reached = self.start <= self.goal * (1 + TOLERANCE)
        slack = TOLERANCE if self.limited_term(module) is None else SLACK
        if self.reached and -TOLERANCE <= self.value / self.goal - 1 <= slack:
            return
        budget = self.budget(trainer, module)
        if first and self.start > self.goal:
            lowest = budget.lowest()
            distributed.first(lambda: self.refuse_below(lowest))
        self.value = budget.lower_to(self.scheduled(trainer.current_epoch))
        if progress == 1.0:
            self.value, self.reached = budget.raise_to(self.goal), True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        student = student_of(pl_module)
        if trainer.current_epoch == trainer.max_epochs - 1 and not trainer.sanity_checking:
            self.value = self.cost_meter(trainer, pl_module).value(student)
            self.drift = self.value / self.goal - 1
            if not -TOLERANCE <= self.drift <= 0:
                budget = self.budget(trainer, pl_module)
                budget.lower_to(self.goal)
                self.value = budget.raise_to(self.goal)
                adopt(student)
        pl_module.log("compress/budget", self.value)
        pl_module.log("compress/heads", student.heads.mean())
        pl_module.log("compress/ffn", student.ffn.mean())
        pl_module.log("compress/t_steps", sum(student.steps) / len(student.steps))

    def budget(self, trainer: L.Trainer, module: L.LightningModule) -> Budget:
        """The search from the student's present state."""
        batches = as_trained(self.loss_batches(trainer, module), module)
        teacher_outputs = getattr(module, "teacher_outputs", None)
        cached = {} if teacher_outputs is None else {id(batch): teacher_outputs(batch) for batch in batches}

        def sample_loss(batch: dict[str, Tensor], outputs: Outputs) -> Tensor:
            known_outputs = cached.get(id(batch))
            return module.sample_loss(batch, outputs, *([] if known_outputs is None else [known_outputs]))

        return Budget(
            student_of(module),
            batches,
            sample_loss,
            lambda _, outputs: drawn_loss(outputs.logits.float(), regression=outputs.logits.shape[-1] == 1),
            lambda logits, others: output_distance(module, logits, others),
            self.cost_meter(trainer, module),
            kinds=self.kinds,
            min_heads=self.min_heads,
            min_ffn=self.min_ffn,
            block=self.block,
            most_steps=self.most_steps or (),
            mode=forward_mode(module),
            mean=agreed,
        )

    def loss_batches(self, trainer: L.Trainer, module: L.LightningModule) -> list[dict[str, Tensor]]:
        count = -(-self.sentences // self.batch_size)
        return decision_batches(trainer, module, batches=count, batch_size=self.batch_size, seed=self.seed)

    def cost_meter(self, trainer: L.Trainer, module: L.LightningModule) -> CostMeter:
        if self.meter is None:
            student = student_of(module)
            self.meter = CostMeter(
                cost_batches(trainer, module, sentences=self.measured, batch_size=self.batch_size, seed=self.seed),
                target=self.target,
                shape=shapes.student_shape(student),
                dense_shape=self.dense_shape or shapes.dense_shape(student),
                prices=self.prices,
                mean=agreed,
            )
        return self.meter

    # -------------------------------------------------------------------------------------------- limit of the losses

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.rate_limit.apply(self.limited_term(pl_module))  # after a resume within an epoch

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        epoch = trainer.current_epoch
        if trainer.sanity_checking or not self.begin <= epoch > self.limited_epoch:
            return
        student, term = student_of(pl_module), self.limited_term(pl_module)
        if epoch > self.decided:
            self.value = self.cost_meter(trainer, pl_module).value(student)
        if term is not None:
            batches = self.loss_batches(trainer, pl_module)
            additions = agreed(term.mean(student, batches, forward_mode(pl_module))).item()
            self.rate_limit.update(additions, value=self.value, goal=self.goal, reached=self.reached)
            self.rate_limit.apply(term)
        self.limited_epoch = epoch

    def limited_term(self, module: L.LightningModule) -> AdditionsTerm | None:
        """The loss term whose limit this sets, if any: latency does not depend on firing rates."""
        return None if self.target == "latency" else getattr(module, "limitable_additions", None)

    # --------------------------------------------------------------------------------------------------------- report

    def refuse_below(self, lowest: float) -> None:
        """Raises InputError where the goal is below `lowest`, the cost with every candidate removed."""
        if lowest > self.goal:
            words = in_words(lowest, target=self.target, relative_to=self.relative_to, unit=self.unit, up=True)
            raise InputError(
                f"stages.budget.value = {self.share:g}: with everything removed that stages.budget.candidates "
                f"[{', '.join(self.kinds)}] and the floors of {self.min_heads} heads and {self.min_ffn} neurons in "
                f"each layer allow, this student still has {words}; that is the lowest value that can be reached"
            )

    def report(self, reported: float) -> dict[str, Any]:
        """The stage's record of its budget. `reported`: the student's cost in the meter's unit on the dev split."""
        measured = self.meter.sentences if self.meter else self.measured
        return budget_record(
            target=self.target,
            relative_to=self.relative_to,
            share=self.share,
            unit=self.unit,
            goal=self.goal,
            value=self.value,
            reported=reported,
            drift=self.drift,
            why_not=shortfall(self.value, reported, goal=self.goal, start=self.start, sentences=measured),
        )

    def state_dict(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in self.STATE}
        return {**super().state_dict(), **own, "rate_limit": asdict(self.rate_limit)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        for name in self.STATE:
            setattr(self, name, state[name])
        self.rate_limit = RateLimit(**state["rate_limit"])
