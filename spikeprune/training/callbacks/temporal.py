"""TemporalPruning: time steps leave between epochs, layer by layer."""

from __future__ import annotations

import lightning as L

from spikeprune.errors import known
from spikeprune.pruning.criteria import TEMPORAL_CRITERIA
from spikeprune.pruning.statistics import temporal_statistics
from spikeprune.training.callbacks.schedule import EpochSchedule, agreed


class TemporalPruning(EpochSchedule):
    """Lowers `t_steps` from its mean at the first decision to a mean of `t_steps`, linearly between `begin` and `end`.

    `criterion` is a name in TEMPORAL_CRITERIA; `batches` batches of `batch_size` show how fast the rates settle, or
    what a step is worth.
    """

    def __init__(
        self,
        *,
        t_steps: int,
        criterion: str,
        batch_size: int,
        seed: int,
        begin: int,
        end: int,
        batches: int = 4,
    ):
        super().__init__(begin=begin, end=end)
        known("criterion", criterion, TEMPORAL_CRITERIA)
        self.target, self.criterion = t_steps, TEMPORAL_CRITERIA[criterion]
        self.batches, self.batch_size, self.seed = batches, batch_size, seed
        self.start: int | None = None  # sum of the steps before the first decision

    def decide(self, trainer: L.Trainer, module: L.LightningModule, progress: float) -> None:
        student = module.student
        steps = student.steps
        self.start = sum(steps) if self.start is None else self.start
        goal = self.target * len(steps)
        total = round(self.start + (goal - self.start) * progress)
        batches = trainer.datamodule.fixed_batches(self.batches, self.batch_size, self.seed)
        batches = [{key: value.to(module.device) for key, value in batch.items()} for batch in batches]

        stats = temporal_statistics(student, batches, module.sample_loss, mean=agreed)  # all ranks decide the same
        student.set_t_steps(self.criterion(stats, total))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """As in SpatialPruning."""
        steps = pl_module.student.steps
        pl_module.log("compress/t_steps", sum(steps) / len(steps))

    def state_dict(self) -> dict:
        return {**super().state_dict(), "start": self.start}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.start = state["start"]
