"""MaskSearch: heads and neurons are chosen in one decision, without retraining or before it."""

from __future__ import annotations

import copy

import lightning as L

from spikeprune.errors import check_counts, check_share
from spikeprune.models.shape import student_shape
from spikeprune.pruning.mask_search import search
from spikeprune.pruning.mask_tuning import tune
from spikeprune.training.callbacks.schedule import EpochSchedule, finite_mean, take_from_rank_zero
from spikeprune.training.protocol import decision_batches, forward_mode, student_of, with_augmentation


class MaskSearch(EpochSchedule):
    """Kwon et al. 2022 (arXiv 2204.09656): one decision at epoch `begin` finds masks within the share `operations` of
    the operations of all heads and neurons, then rescales the weights behind those that stay (`pruning.mask_search`,
    `pruning.mask_tuning`).

    operations          share to keep, in 0..1
    min_heads, min_ffn  kept in every layer
    alone               decide before the first epoch and stop, without a training step
    batches, seed       training batches of the Fisher information, of the operations and of the losses
    batch_size          of them, where the datamodule makes them (see `training.protocol`)

    Raises ValueError for what is no share or count, InputError for a share below what the floors keep.
    Example: `Trainer(callbacks=[MaskSearch(operations=0.5)])`
    """

    def __init__(
        self,
        *,
        operations: float,
        min_heads: int = 1,
        min_ffn: int = 8,
        alone: bool = False,
        batches: int = 16,
        batch_size: int = 32,
        seed: int = 0,
        begin: int = 0,
    ):
        super().__init__(begin=begin, end=begin)
        check_share("operations", operations)
        check_counts(0, min_heads=min_heads, min_ffn=min_ffn)
        check_counts(1, batches=batches, batch_size=batch_size)
        self.operations, self.alone = operations, alone
        self.floors = {"heads": min_heads, "ffn": min_ffn}
        self.batches, self.batch_size, self.seed = batches, batch_size, seed

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.alone:
            self.decide(trainer, pl_module, 1.0)
            take_from_rank_zero(student_of(pl_module))
            self.decided = self.begin
            trainer.should_stop = True  # before the first epoch: not a step is made

    def decide(self, trainer: L.Trainer, module: L.LightningModule, progress: float) -> None:
        student, mode = student_of(module), forward_mode(module)
        batches = decision_batches(trainer, module, batches=self.batches, batch_size=self.batch_size, seed=self.seed)
        batches = with_augmentation(batches, module)
        unpruned = copy.deepcopy(student)
        found = search(
            student,
            batches,
            module.sample_loss,
            shape=student_shape(student),
            operations=self.operations,
            floors=self.floors,
            mode=mode,
            mean=finite_mean,
        )
        errors = tune(student, unpruned, batches, module.sample_loss, mode=mode, mean=finite_mean)
        take_from_rank_zero(student, weights=True)
        logged = {
            **found,
            "error_before": sum(before for before, _ in errors),
            "error_after": sum(after for _, after in errors),
            "heads": student.heads.mean().item(),
            "ffn": student.ffn.mean().item(),
        }
        for logger in trainer.loggers:
            logger.log_metrics({f"compress/{name}": value for name, value in logged.items()}, step=trainer.global_step)
