"""Resuming a stage after a kill: state that Lightning's checkpoint leaves out, and atomic writes."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from spikeprune.files.atomic import write_atomic
from spikeprune.training import distributed
from spikeprune.training.lightning_patches import log_step, log_steps_early


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its predecessor and renames it; Lightning's own goes by way of the temporary folder,
    which may be another disk, and then a kill in the middle leaves half a file."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(Path(path), buffer.getvalue())


class ResumeCheckpoint(ModelCheckpoint):
    """Writes a stage's resume checkpoint. One that is due at the last batch of an epoch is written at the epoch's end:
    Lightning would resume from it behind the epoch's validation, which a kill may have cut short. `every`: optimizer
    steps, None for each epoch's end."""

    def __init__(self, folder: Path, every: int | None):
        when = {"every_n_train_steps": every} if every else {"every_n_epochs": 1, "save_on_train_epoch_end": True}
        super().__init__(folder, "resume", save_top_k=1, enable_version_counter=False, **when)
        self.every, self.due = every, False

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if not trainer.is_last_batch:
            super().on_train_batch_end(trainer, pl_module, *args)
        elif self.every:
            self.due = trainer.global_step % self.every == 0

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        if self.due:
            self.due = False
            trainer.save_checkpoint(Path(self.dirpath) / f"{self.filename}{self.FILE_EXTENSION}")


class ResumeState(L.Callback):
    """Carries torch's random states, those of each process, so that dropout continues with the same random numbers,
    the loader's epoch, and the seconds spent in earlier attempts. Logs each step before a checkpoint of it is written,
    so it comes behind the callbacks that log and ahead of those that save."""

    def __init__(self):
        self.spent = 0.0
        self.started = time.monotonic()
        self.random: dict[str, Any] | None = None

    @property
    def seconds(self) -> float:
        return self.spent + time.monotonic() - self.started

    def state_dict(self) -> dict[str, Any]:
        if distributed.world() > 1:  # every process comes here, and rank 0 alone writes
            own = [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []
            return {"seconds": self.seconds, "ranks": distributed.gather({"cpu": torch.get_rng_state(), "cuda": own})}
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return {"seconds": self.seconds, "cpu": torch.get_rng_state(), "cuda": cuda}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.spent, self.random = state["seconds"], state

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        log_steps_early(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        log_step(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.random is None:
            distributed.own_randomness()
            return
        own = self.random["ranks"][distributed.rank()] if distributed.world() > 1 else self.random
        torch.set_rng_state(own["cpu"].cpu())
        if torch.cuda.is_available() and own["cuda"]:
            states = [state.cpu() for state in own["cuda"]]
            torch.cuda.set_rng_state(states[0]) if distributed.world() > 1 else torch.cuda.set_rng_state_all(states)
        self.random = None
        loader = trainer.train_dataloader
        if not loader.yielded:  # Lightning restores the loader in the middle of an epoch only, not between two
            loader.epoch = max(loader.epoch, trainer.current_epoch)
