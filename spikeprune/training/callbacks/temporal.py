"""TemporalPruning: the time steps of each layer are lowered between epochs."""

from __future__ import annotations

from typing import Any

import lightning as L

from spikeprune.errors import check_counts, known
from spikeprune.pruning.criteria import TEMPORAL_CRITERIA
from spikeprune.pruning.statistics import temporal_statistics
from spikeprune.training.callbacks.schedule import EpochSchedule, finite_mean
from spikeprune.training.protocol import decision_batches, student_of


class TemporalPruning(EpochSchedule):
    """Lowers `t_steps` from its mean at the first decision to a mean of `t_steps`, linearly between `begin` and `end`.

    t_steps        mean number of time steps to end with, over the embedding and all layers
    criterion      a name in `pruning.criteria.TEMPORAL_CRITERIA`
    batches, seed  training batches that the criterion is computed on, where it needs any
    batch_size     of them, where the datamodule makes them (see `training.protocol`)

    Raises ValueError for an unknown criterion and for what is no count.
    Example: `Trainer(callbacks=[TemporalPruning(t_steps=2)])`
    """

    def __init__(
        self,
        *,
        t_steps: int,
        criterion: str = "convergence",
        batches: int = 4,
        batch_size: int = 32,
        seed: int = 0,
        begin: int = 0,
        end: int | None = None,
    ):
        super().__init__(begin=begin, end=end)
        known("criterion", criterion, TEMPORAL_CRITERIA)
        check_counts(1, t_steps=t_steps, batches=batches, batch_size=batch_size)
        self.target, self.criterion = t_steps, TEMPORAL_CRITERIA[criterion]
        self.batches, self.batch_size, self.seed = batches, batch_size, seed
        self.start: int | None = None  # sum of the steps before the first decision

    def decide(self, trainer: L.Trainer, module: L.LightningModule, progress: float) -> None:
        student = student_of(module)
        steps = student.steps
        self.start = sum(steps) if self.start is None else self.start
        goal = self.target * len(steps)
        total = round(self.start + (goal - self.start) * progress)
        batches = decision_batches(trainer, module, batches=self.batches, batch_size=self.batch_size, seed=self.seed)
        stats = temporal_statistics(student, batches, module.sample_loss, mean=finite_mean)  # all ranks decide the same
        found = self.criterion(stats, total)
        if sum(found) > total or any(map(int.__gt__, found, steps)):
            raise ValueError(
                f"a criterion gave time steps {found} for {steps}; none may rise, and their sum be {total}"
            )
        student.set_t_steps(found)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """As in SpatialPruning."""
        steps = student_of(pl_module).steps
        pl_module.log("compress/t_steps", sum(steps) / len(steps))

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "start": self.start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.start = state["start"]
