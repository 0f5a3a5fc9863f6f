"""StopOnSignal: a signal of the cluster writes the stage's resume checkpoint and ends the training at once.

Lightning's own handler of SIGUSR1 saves elsewhere and trains on until it is killed, so that the next attempt repeats
steps; its handler of SIGTERM ends with exit code 0.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch

from spikeprune.training import signals
from spikeprune.training.lightning_patches import begin_validation_again
from spikeprune.training.signals import Stopped

CHECK_EVERY = 10  # batches between two checks where several processes must agree on the signal


class StopOnSignal(L.Callback):
    """`checkpoint`: the stage's resume checkpoint; None while a model is only measured.

    In training the checkpoint is written at the end of a batch and the run stopped at the beginning of the next, when
    the batch has been logged. The last batch of an epoch is followed by its validation first, which stops at once too
    and is started again by the next attempt.
    """

    def __init__(self, checkpoint: Path | None = None):
        self.checkpoint = checkpoint
        self.stopping = 0  # the signal, once a checkpoint is written
        self.validating = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        signals.install_handlers()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        signals.install_handlers()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if not trainer.is_last_batch and (signal := received_signal(trainer, trainer.global_step)):
            trainer.save_checkpoint(self.checkpoint)
            self.stopping = signal

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if self.stopping:
            raise Stopped(self.stopping)

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        signal = received_signal(trainer, batch_idx)
        if signal and self.checkpoint is not None:
            self.validating = True
            trainer.save_checkpoint(self.checkpoint)
        if signal:
            raise Stopped(signal)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self.validating:
            begin_validation_again(checkpoint)


def received_signal(trainer: L.Trainer, count: int) -> int:
    """The signal that this process, or any that trains with it, has received; 0 for none.

    `count`: of batches, the same in every process. Several processes agree at every tenth only, since agreement waits
    for the GPU.
    """
    if trainer.world_size == 1:
        return signals.received()
    if count % CHECK_EVERY:
        return 0
    own = torch.tensor(signals.received(), device=trainer.strategy.root_device)
    return int(trainer.strategy.reduce(own, reduce_op="max"))
