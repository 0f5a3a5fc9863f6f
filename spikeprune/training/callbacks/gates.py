"""GatePruning: heads, neurons and time steps are learnt to be kept or removed under one budget, by gates."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor

from spikeprune.errors import InputError
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.shape import student_shape
from spikeprune.pruning.budget_report import TOLERANCE
from spikeprune.pruning.cost_meter import CostMeter
from spikeprune.pruning.gates import floor_of, keep_within, masks_of, set_masks, shorten
from spikeprune.pruning.statistics import collect, weight_norms
from spikeprune.training import distributed
from spikeprune.training.additions import AdditionsTerm
from spikeprune.training.callbacks.budget_target import BudgetTarget
from spikeprune.training.callbacks.schedule import adopt, agreed
from spikeprune.training.gates import Gates
from spikeprune.training.losses import drawn_loss, falling
from spikeprune.training.protocol import as_trained, forward_mode, student_of

FALL = 0.75  # share of the learning epochs in which the target falls to the goal; in the rest gates settle there
HOLD = 0.25  # share of the epochs in which the price of a stage without gates finds its size
SLACK = 0.1  # share of the goal above it that the price of firing is trusted to remove
NO_LIMIT = 1e9  # of the loss term `additions`: the price replaces it


class GatePruning(BudgetTarget):
    """Learns which units stay (`training.gates`), and hardens them between epochs.

    - Up to epoch `settle` gates are drawn anew in each step, and the target of the priced cost falls from the present
      cost to the goal, by equal factors. At each epoch's start masks show the gates that are open, and steps whose
      gates have closed leave for good.
    - At `settle` the settled gates are folded into the weights, and masks keep the units of the highest gates, as many
      as the measured cost allows. From then on the price acts on firing rates, which keep the cost at the goal.
    - Up to epoch `end` units leave or return where the measured cost has moved too far; when the last epoch ends a
      remaining excess is removed.

    learn   False: masks and steps are final already, as in fine-tuning after the stage
    The other arguments are those of `BudgetTarget`. The module must have a member `gates` (see `PrunableModule`).
    Example: `Trainer(callbacks=[GatePruning(target="energy", share=0.02)])`
    """

    def __init__(self, *, learn: bool = True, **common: Any):
        super().__init__(**common)
        self.learn = learn
        self.gates: Gates | None = None
        self.saved: dict[str, Any] | None = None  # of the gates, in a checkpoint

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        if not hasattr(pl_module, "gates"):
            raise InputError(
                f"GatePruning cannot prune {type(pl_module).__name__}: it has no member `gates`; set it to None in "
                "__init__, and where it is not None pass the student rate=True and **gates.relaxed(), and add "
                "gates.penalty(outputs, tokens) to the loss"
            )
        self.settle = max(self.settle, self.begin + 1)
        self.last, self.end = self.end, trainer.max_epochs - 1  # every epoch begins with a measurement

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        student, batches = student_of(pl_module), trainer.num_training_batches
        term = AdditionsTerm(student_shape(student), begin=0.0, end=0.0, fall=1.0)
        epochs = FALL * (self.settle - self.begin) if self.learn else HOLD * trainer.max_epochs
        self.first, self.fall = self.begin * batches, max(1, round(epochs * batches))
        self.gates = Gates(
            student,
            kinds=("steps",) if self.target == "latency" else self.kinds,
            term=None if self.target == "latency" else term,
            steps=self.fall,
            seed=self.seed,
            equal_bits=self.target == "equal_bits",
        )
        self.gates.learning = self.learn
        if self.saved is not None:
            self.gates.load_state_dict(self.saved)
        pl_module.gates = self.gates
        if (limited := self.limited_term(pl_module)) is not None:
            limited.limit.fill_(NO_LIMIT)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.gates.draw()
        self.gates.aim(self.aimed(trainer.global_step))

    def on_train_batch_end(self, *_: Any) -> None:
        self.gates.step()

    def aimed(self, step: int) -> float:
        """The cost that a training step aims at."""
        goal = self.goal if self.target == "latency" else self.goal * (1 - TOLERANCE / 2)
        if not self.gates.learning or self.start <= goal:
            return goal
        return falling(max(0, step - self.first) / self.fall, begin=self.start, end=goal)

    # ------------------------------------------------------------------------------------------------------ decisions

    def decide(self, trainer: L.Trainer, module: L.LightningModule, progress: float) -> None:
        student, gates, meter = student_of(module), self.gates, self.cost_meter(trainer, module)
        self.value = meter.value(student)
        if self.start is None:
            self.start = self.value
            self.reference = self.start if self.reference is None else self.reference
            if self.start > self.goal:
                lowest = self.lowest(student, meter)
                distributed.first(lambda: self.refuse_below(lowest))
        if gates.learning and trainer.current_epoch >= self.settle:
            self.harden(student, meter)
        elif gates.learning:
            self.expose(student)
        elif trainer.current_epoch <= self.last and not -TOLERANCE <= self.value / self.goal - 1 <= SLACK:
            self.adjust(trainer, module)
        self.value = meter.value(student)
        if gates.term is not None:
            additions = gates.term.mean(student, self.loss_batches(trainer, module), forward_mode(module))
            gates.calibrate(self.value, agreed(additions))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        student = student_of(pl_module)
        if trainer.current_epoch == trainer.max_epochs - 1 and not trainer.sanity_checking:
            meter = self.cost_meter(trainer, pl_module)
            self.value = meter.value(student)
            self.drift = self.value / self.goal - 1
            if self.gates.learning:
                self.harden(student, meter)
            elif self.drift > 0:
                self.adjust(trainer, pl_module)
            adopt(student)
            self.value = meter.value(student)
        self.log_state(pl_module)
        pl_module.log("compress/price", self.gates.price.detach())

    def expose(self, student: SpikingBert) -> None:
        """Masks and steps as the gates have them now."""
        settled = self.gates.settled()
        closed = (settled[2] < 0.5).nonzero()[:, 0].tolist()
        if closed and "steps" in self.kinds:
            shorten(student, closed)
            self.gates.reopen(closed)
        units = torch.cat([part.flatten() for part in settled[:2]])
        set_masks(student, torch.maximum((units >= 0.5).to(student.heads), self.floor(student, self.scores())))

    def harden(self, student: SpikingBert, meter: CostMeter) -> None:
        """The settled gates become weights, masks and steps within the goal."""
        self.gates.fold()
        self.expose(student)
        scores = self.scores()
        floor = self.floor(student, scores)
        set_masks(student, floor)
        while meter.value(student) > self.goal and "steps" in self.kinds and max(student.steps) > 1:
            places = self.least_steps(student)
            shorten(student, places)
            self.gates.reopen(places)
        keep_within(student, scores, floor, meter, self.goal)
        self.gates.learning, self.reached = False, True

    def adjust(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Remove the units of the smallest Fisher information for their saving, or return those of the largest."""
        if self.target == "latency":
            return
        student, meter = student_of(module), self.cost_meter(trainer, module)
        batches = as_trained(self.loss_batches(trainer, module), module)
        stats = collect(student, batches, drawn, mode=forward_mode(module), seed=self.seed)
        fisher = agreed(torch.cat([stats.head_fisher.flatten(), stats.ffn_fisher.flatten()]))
        reading = meter.read(student)
        saving = torch.cat([reading.heads.flatten(), reading.ffn.flatten()]).to(fisher)
        kept = masks_of(student) > 0
        scores = torch.where(kept, fisher / saving.clamp(min=1e-30), -1 / fisher.clamp(min=1e-30))
        scores = scores.masked_fill(self.gates.allowed[: len(scores)] == 0, -torch.inf)
        keep_within(student, scores, self.floor(student, scores), meter, self.goal)

    def scores(self) -> Tensor:
        """`[L H + L F]`: by which units stay; -inf for those that were pruned before the stage."""
        units = sum(self.gates.sizes[:2])
        return self.gates.log_alpha.detach()[:units].masked_fill(self.gates.allowed[:units] == 0, -torch.inf)

    def floor(self, student: SpikingBert, scores: Tensor) -> Tensor:
        fixed = (self.gates.allowed - self.gates.gated)[: len(scores)]
        return floor_of(student, scores, fixed, min_heads=self.min_heads, min_ffn=self.min_ffn)

    def least_steps(self, student: SpikingBert) -> list[int]:
        """The places whose steps leave next: that of the lowest gate; of synchronous layers, whose latency is that of
        the longest, all the longest."""
        longest = max(student.steps)
        if self.target == "latency" and student.coding != "accumulate":
            return [i for i, t in enumerate(student.steps) if t == longest]
        gates = self.gates.log_alpha.detach()[sum(self.gates.sizes[:2]) :].tolist()
        return [min((i for i, t in enumerate(student.steps) if t > 1), key=lambda i: gates[i])]

    def lowest(self, student: SpikingBert, meter: CostMeter) -> float:
        """The measured cost of the floors, in single steps; the student itself stays as it is."""
        masks, steps, norms = masks_of(student), list(student.steps), weight_norms(student)
        scores = torch.cat([norms["head_weight"].flatten(), norms["ffn_weight"].flatten()])
        scores = scores.masked_fill(self.gates.allowed[: len(scores)] == 0, -torch.inf)
        set_masks(student, self.floor(student, scores))
        student.set_t_steps([1] * len(steps) if "steps" in self.kinds else steps)
        value = meter.value(student)
        set_masks(student, masks)
        student.set_t_steps(steps)
        return value

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "gates": None if self.gates is None else self.gates.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.saved = state["gates"]


def drawn(_: Any, outputs: Any) -> Tensor:
    """`[B]`: the loss whose squared gradient is the Fisher information."""
    return drawn_loss(outputs.logits.float(), regression=outputs.logits.shape[-1] == 1)
