"""BudgetTarget: what the callbacks of a budget share: its goal, the meter of its cost, its report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L
from torch import Tensor

from spikeprune.cost.energy_models import ENERGY_MODELS
from spikeprune.cost.shapes import Shape
from spikeprune.errors import InputError, known
from spikeprune.models import shape as shapes
from spikeprune.pruning.budget_report import budget_record, goal_of, in_words, shortfall
from spikeprune.pruning.candidates import KINDS
from spikeprune.pruning.cost_meter import TARGETS, CostMeter
from spikeprune.training.additions import AdditionsTerm
from spikeprune.training.callbacks.schedule import EpochSchedule, agreed, last_decision
from spikeprune.training.protocol import cost_batches, decision_batches, student_of

SENTENCES = 512  # training sentences that losses are estimated on
MEASURED = 1024  # training sentences that cost is measured on: the dev split is for the report
SETTLED = 0.5  # share of the epochs after which the goal is reached, where `settle` is not given
RECOVER = 0.25  # last share of the epochs that only trains, where `end` is not given


class BudgetTarget(EpochSchedule):
    """A schedule under a budget.

    target              one of `cost_meter.TARGETS`: ac (additions), energy, equal_bits (energy over that of the same
                        network computed densely at equal bits) or latency
    share               of the reference's cost, to end with
    relative_to         dense (the dense teacher) or student (the uncompressed one)
    reference           the uncompressed student's cost in the meter's unit; None: its cost at the first decision
    candidates          kinds that may be removed, of `candidates.KINDS`
    min_heads, min_ffn  kept in every layer
    sentences, measured training sentences that losses and costs are measured on, in batches of `batch_size`
    model               of energy: one of `cost.energy_models.ENERGY_MODELS`
    dense_shape         of the teacher; None: of the dense BERT of the student's sizes

    Raises ValueError for an unknown name, and InputError for a share that the floors do not allow.
    """

    STATE: tuple[str, ...] = ("start", "value", "reached", "reference", "drift")  # in a checkpoint

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
        model: str = "convention",
        begin: int = 0,
        settle: int | None = None,
        end: int | None = None,
        sentences: int = SENTENCES,
        measured: int = MEASURED,
        reference: float | None = None,
    ):
        super().__init__(begin=begin, end=end)
        known("target", target, TARGETS)
        known("model", model, ENERGY_MODELS)
        known("relative_to", relative_to, ("dense", "student"))
        for kind in candidates:
            known("candidate", kind, KINDS)
        self.target, self.share, self.relative_to = target, share, relative_to
        self.kinds, self.min_heads, self.min_ffn = tuple(candidates), min_heads, min_ffn
        self.sentences, self.measured = sentences, measured
        self.batch_size, self.seed = batch_size, seed
        self.dense_shape, self.model = dense_shape, model
        self.settle, self.reference = settle, reference
        self.start: float | None = None  # the cost before the first decision
        self.value: float | None = None  # the cost at the last measurement
        self.reached = False  # whether a decision has brought it to the goal
        self.drift = 0.0  # the cost after the last step over the goal, less one
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
                model=ENERGY_MODELS[self.model],
                mean=agreed,
            )
        return self.meter

    def limited_term(self, module: L.LightningModule) -> AdditionsTerm | None:
        """The loss term whose limit this sets, if any: latency does not depend on firing rates."""
        return None if self.target == "latency" else getattr(module, "limitable_additions", None)

    def log_state(self, module: L.LightningModule) -> None:
        student = student_of(module)
        module.log("compress/budget", self.value)
        module.log("compress/heads", student.heads.mean())
        module.log("compress/ffn", student.ffn.mean())
        module.log("compress/t_steps", sum(student.steps) / len(student.steps))

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
        return {**super().state_dict(), **{name: getattr(self, name) for name in self.STATE}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        for name in self.STATE:
            setattr(self, name, state[name])
