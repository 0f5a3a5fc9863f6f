"""BudgetPruning: heads, neurons, time steps and firing rates are learnt under one measured budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor

from spikeprune import distributed
from spikeprune.cost.shapes import Shape
from spikeprune.errors import InputError, check_counts, known
from spikeprune.models.shape import student_shape
from spikeprune.pruning.budget import TOLERANCE, Budget, CostMeter
from spikeprune.pruning.gates import KINDS
from spikeprune.pruning.statistics import collect
from spikeprune.training.callbacks.schedule import EpochSchedule, finite_mean, last_decision, take_from_rank_zero
from spikeprune.training.gates import Gates
from spikeprune.training.hardening import Hardening
from spikeprune.training.losses import drawn_loss, falling
from spikeprune.training.objective import AdditionsTerm
from spikeprune.training.protocol import cost_batches, decision_batches, forward_mode, student_of, with_augmentation

SENTENCES = 512  # training sentences that losses are estimated on
MEASURED = 1024  # training sentences that cost is measured on: the dev split is for the report
SETTLED = 0.5  # share of the epochs after which the goal is reached, where `settle` is not given
RECOVER = 0.25  # last share of the epochs that only trains, where `end` is not given
FALL = 0.75  # share of the learning epochs in which the target falls to the goal; in the rest gates settle there
WARMUP = 0.25  # share of the epochs in which the multiplier of a stage without gates finds its size
SLACK = 0.1  # share of the goal above it that the multiplier is trusted to remove by firing rates
MIN_STEPS_APART = 100  # fewest optimizer steps between two measurements, which take as long as some tens each


class BudgetPruning(EpochSchedule):
    """Lowers the student's cost to `share` of a reference and keeps it there. Gates (`training.gates`) learn which
    units stay, and are hardened between epochs (`training.hardening`).

    - Up to epoch `settle` gates are drawn anew in each step, and the target of the cost falls from the present
      cost to the goal, by equal factors. At each epoch's start masks show the gates that are open, and steps whose
      gates have closed leave for good.
    - At `settle` the settled gates are folded into the weights, and masks keep the units of the highest gates, as many
      as the measured cost allows. From then on the multiplier acts on firing rates, which keep the cost at the goal.
    - Up to epoch `end` units leave or return where the measured cost has moved too far; when the last epoch ends a
      remaining excess is removed.

    Where epochs are shorter than 100 optimizer steps some of them begin without a measurement.

    target              one of `pruning.budget.TARGETS`: ac (additions), energy, equal_bits (energy over that of the
                        same network computed densely at equal bits) or latency
    share               of the reference's cost, to end with
    relative_to         dense (the dense teacher) or student (the uncompressed one); None: dense, of latency student
    reference           the uncompressed student's cost in the meter's unit; None: its cost at the first decision
    candidates          kinds that may be removed, of `pruning.gates.KINDS`
    min_heads, min_ffn  kept in every layer
    sentences, measured training sentences that losses and costs are measured on, in batches of `batch_size`
    model               of energy: one of `cost.energy_models.ENERGY_MODELS`
    dense_shape         of the teacher; None: of the dense BERT of the student's sizes
    learn               False: masks and steps are final already, as in fine-tuning after the stage

    The module must have a member `gates` (see `PrunableModule`). Raises ValueError for an unknown name or what is no
    share, and InputError for a module without gates and for a share that the floors do not allow.
    Example: `Trainer(callbacks=[BudgetPruning(target="energy", share=0.02)])`
    """

    STATE = ("start", "value", "drift", "counted")  # in a checkpoint

    def __init__(
        self,
        *,
        target: str = "energy",
        share: float,
        relative_to: str | None = None,
        candidates: Sequence[str] = KINDS,
        min_heads: int = 1,
        min_ffn: int = 8,
        batch_size: int = 32,
        seed: int = 0,
        dense_shape: Shape | None = None,
        model: str = "convention",
        settle: int | None = None,
        end: int | None = None,
        sentences: int = SENTENCES,
        measured: int = MEASURED,
        reference: float | None = None,
        learn: bool = True,
    ):
        super().__init__(end=end)
        self.budget = Budget(target, share, relative_to, model, dense_shape, reference)
        for kind in candidates:
            known("candidate", kind, KINDS)
        check_counts(0, min_heads=min_heads, min_ffn=min_ffn)
        check_counts(1, sentences=sentences, measured=measured, batch_size=batch_size)
        self.kinds, self.min_heads, self.min_ffn = tuple(candidates), min_heads, min_ffn
        self.sentences, self.measured = sentences, measured
        self.batch_size, self.seed = batch_size, seed
        self.settle, self.learn = settle, learn
        self.start: float | None = None  # the cost before the first decision
        self.value: float | None = None  # the cost at the last measurement
        self.drift = 0.0  # the cost after the last step over the goal, less one
        self.counted = measured  # sentences that the cost is measured on, of fewer in the training data these
        self.meter: CostMeter | None = None
        self.gates: Gates | None = None
        self.saved: dict[str, Any] | None = None  # of the gates, in a checkpoint

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        if not hasattr(pl_module, "gates"):
            raise InputError(
                f"BudgetPruning cannot prune {type(pl_module).__name__}: it has no member `gates`; set it to None in "
                "__init__, and where it is not None pass the student rate=True and **gates.relaxed(), and add "
                "gates.penalty(outputs, tokens) to the loss"
            )
        self.meter, epochs = None, trainer.max_epochs
        self.last = max(0, epochs - 1 - max(1, round(RECOVER * epochs))) if self.given_end is None else self.given_end
        settle = last_decision(SETTLED, epochs) if self.settle is None else self.settle
        self.settled = max(min(settle, self.last), 1)
        self.end = epochs - 1  # every epoch begins with a measurement

    @property
    def goal(self) -> float:
        return self.budget.goal

    # --------------------------------------------------------------------------------------------------- the training

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        student, batches = student_of(pl_module), trainer.num_training_batches
        term = AdditionsTerm(student_shape(student))
        epochs = FALL * self.settled if self.learn else WARMUP * trainer.max_epochs
        self.fall = max(1, round(epochs * batches))
        self.gates = Gates(
            student,
            kinds=("steps",) if self.budget.target == "latency" else self.kinds,
            term=None if self.budget.target == "latency" else term,
            steps=self.fall,
            seed=self.seed,
            equal_bits=self.budget.target == "equal_bits",
        )
        self.gates.learning = self.learn
        if self.saved is not None:
            self.gates.load_state_dict(self.saved)
        pl_module.gates = self.gates

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.gates.draw()
        self.gates.aim(self.aimed(trainer.global_step))

    def on_train_batch_end(self, *_: Any) -> None:
        self.gates.step()

    def aimed(self, step: int) -> float:
        """The cost that a training step aims at."""
        goal = self.goal if self.budget.target == "latency" else self.goal * (1 - TOLERANCE / 2)
        if not self.gates.learning or self.start <= goal:
            return goal
        return falling(step / self.fall, begin=self.start, end=goal)

    # ------------------------------------------------------------------------------------------------------ decisions

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        every = -(-MIN_STEPS_APART // trainer.num_training_batches)
        if (trainer.current_epoch - self.settled) % every == 0 or trainer.current_epoch == 0:
            super().on_train_epoch_start(trainer, pl_module)

    def decide(self, trainer: L.Trainer, module: L.LightningModule, progress: float) -> None:
        student, gates, meter = student_of(module), self.gates, self.cost_meter(trainer, module)
        hardening = self.hardening(trainer, module)
        if self.start is None:
            self.start = meter.value(student)
            if self.budget.reference is None:
                self.budget.reference = self.start
            if self.start > self.goal:
                lowest = hardening.lowest()
                distributed.from_rank_zero(lambda: self.refuse_below(lowest))
        if gates.learning and trainer.current_epoch >= self.settled:
            self.value = hardening.harden(self.goal)
        elif gates.learning:
            hardening.expose()
            self.value = meter.value(student)
        else:
            self.value = meter.value(student)
            if trainer.current_epoch <= self.last and not -TOLERANCE <= self.value / self.goal - 1 <= SLACK:
                self.value = self.adjust(trainer, module)
        if gates.term is not None:
            additions = gates.term.mean(student, self.loss_batches(trainer, module), forward_mode(module))
            gates.calibrate(self.value, finite_mean(additions))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        student = student_of(pl_module)
        if trainer.current_epoch == trainer.max_epochs - 1 and not trainer.sanity_checking:
            meter = self.cost_meter(trainer, pl_module)
            self.value = meter.value(student)
            self.drift = self.value / self.goal - 1
            if self.gates.learning:
                self.value = self.hardening(trainer, pl_module).harden(self.goal)
            elif self.drift > 0:
                self.value = self.adjust(trainer, pl_module)
            take_from_rank_zero(student)
        self.log_state(pl_module)

    def adjust(self, trainer: L.Trainer, module: L.LightningModule) -> float:
        """Remove or return units by their Fisher information, and return the cost; latency is that of the steps, which
        stay."""
        if self.budget.target == "latency":
            return self.value
        batches = with_augmentation(self.loss_batches(trainer, module), module)
        stats = collect(student_of(module), batches, drawn, mode=forward_mode(module), seed=self.seed)
        fisher = finite_mean(torch.cat([stats.head_fisher.flatten(), stats.ffn_fisher.flatten()]))
        return self.hardening(trainer, module).adjust(fisher, self.goal)

    def hardening(self, trainer: L.Trainer, module: L.LightningModule) -> Hardening:
        return Hardening(
            gates=self.gates,
            meter=self.cost_meter(trainer, module),
            kinds=self.kinds,
            min_heads=self.min_heads,
            min_ffn=self.min_ffn,
        )

    def loss_batches(self, trainer: L.Trainer, module: L.LightningModule) -> list[dict[str, Tensor]]:
        count = -(-self.sentences // self.batch_size)
        return decision_batches(trainer, module, batches=count, batch_size=self.batch_size, seed=self.seed)

    def cost_meter(self, trainer: L.Trainer, module: L.LightningModule) -> CostMeter:
        if self.meter is None:
            batches = cost_batches(trainer, module, sentences=self.measured, batch_size=self.batch_size, seed=self.seed)
            self.meter = self.budget.meter(student_of(module), batches, finite_mean)
            self.counted = self.meter.sentences
        return self.meter

    # ------------------------------------------------------------------------------------------------------ the report

    def log_state(self, module: L.LightningModule) -> None:
        student = student_of(module)
        module.log("compress/budget", self.value)
        module.log("compress/heads", student.heads.mean())
        module.log("compress/ffn", student.ffn.mean())
        module.log("compress/t_steps", sum(student.steps) / len(student.steps))
        module.log("compress/multiplier", self.gates.multiplier.detach())

    def refuse_below(self, lowest: float) -> None:
        """Raises InputError where the goal is below `lowest`, the cost with every candidate removed."""
        if lowest > self.goal:
            raise InputError(
                f"stages.budget.value = {self.budget.share:g}: with everything removed that stages.budget.candidates "
                f"[{', '.join(self.kinds)}] and the floors of {self.min_heads} heads and {self.min_ffn} neurons in "
                f"each layer allow, this student still has {self.budget.in_words(lowest)}; that is the lowest value "
                "that can be reached"
            )

    def report(self, reported: float) -> dict[str, Any]:
        """The stage's record of its budget. `reported`: the student's cost in the meter's unit on the dev split."""
        return self.budget.record(self.value, reported, start=self.start, drift=self.drift, sentences=self.counted)

    def state_dict(self) -> dict[str, Any]:
        state = {name: getattr(self, name) for name in self.STATE} | {"reference": self.budget.reference}
        return {**super().state_dict(), **state, "gates": None if self.gates is None else self.gates.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        for name in self.STATE:
            setattr(self, name, state[name])
        self.budget.reference = state["reference"]
        self.saved = state["gates"]


def drawn(_: Any, outputs: Any) -> Tensor:
    """`[B]`: the loss whose squared gradient is the Fisher information."""
    return drawn_loss(outputs.logits.float(), regression=outputs.logits.shape[-1] == 1)
