"""BudgetPruning: heads, neurons and time steps are removed between epochs under one measured budget."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import lightning as L
from torch import Tensor

from spikeprune.models.outputs import Outputs
from spikeprune.pruning.budget import Budget
from spikeprune.pruning.budget_report import TOLERANCE
from spikeprune.pruning.estimates import BLOCK
from spikeprune.pruning.schedules import cubic
from spikeprune.training import distributed
from spikeprune.training.callbacks.budget_target import BudgetTarget
from spikeprune.training.callbacks.schedule import adopt, agreed
from spikeprune.training.losses import drawn_loss
from spikeprune.training.protocol import as_trained, forward_mode, output_distance, student_of
from spikeprune.training.rate_limit import RateLimit

SLACK = 0.1  # share of the goal above it that a limit of the losses is trusted to remove


class BudgetPruning(BudgetTarget):
    """Lowers the student's cost to `share` of a reference, on a cubic schedule from epoch `begin` to epoch `settle`,
    and keeps it there, since firing rates go on changing while the student trains.

    - Up to epoch `end` decisions remove the candidates of the smallest loss for their saving while the cost is above
      the schedule, and return the most useful ones while it is below the goal (`pruning.budget`).
    - Where the loss has a term for additions without a limit (`PrunableModule.limitable_additions`), each epoch begins
      with a new limit: before `settle` the present additions, so that firing rates stay; after it those that keep to
      the goal, with a penalty that doubles while that is not enough (`training.rate_limit`). Decisions then remove
      only what is more than SLACK above the goal.
    - When the last epoch ends the cost is measured again, and a remaining excess is removed.

    `block`: neurons that are removed together; the other arguments are those of `BudgetTarget`.
    Example: `Trainer(callbacks=[BudgetPruning(target="energy", share=0.02)])`
    """

    STATE = (*BudgetTarget.STATE, "most_steps", "limited_epoch")

    def __init__(self, *, block: int = BLOCK, **common: Any):
        super().__init__(**common)
        self.block = block
        self.most_steps: list[int] | None = None  # the steps before the first decision
        self.limited_epoch = -1  # last epoch that the limit was set for
        self.rate_limit = RateLimit()

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
        self.log_state(pl_module)

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

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "rate_limit": asdict(self.rate_limit)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.rate_limit = RateLimit(**state["rate_limit"])
