"""Resuming a stage after a kill: state that Lightning's checkpoint leaves out, and atomic writes."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from spikeprune import distributed
from spikeprune.files.atomic import write_atomic
from spikeprune.training.lightning_patches import log_step, log_steps_early

ADAMW = ("step", "exp_avg", "exp_avg_sq")  # a parameter's state


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

    def state_dict(self) -> dict[str, Any]:
        """None: paths and scores of earlier files, which an edited checkpoint could lead elsewhere."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass

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
        self.step = 0  # of the checkpoint
        self.begun = False  # whether all has been restored

    @property
    def seconds(self) -> float:
        return self.spent + time.monotonic() - self.started

    def state_dict(self) -> dict[str, Any]:
        if distributed.world() > 1:  # every process comes here, and rank 0 alone writes
            own = [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []
            return {"seconds": self.seconds, "ranks": distributed.gather({"cpu": torch.get_rng_state(), "cuda": own})}
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return {"seconds": self.seconds, "cpu": torch.get_rng_state(), "cuda": cuda}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self.step = checkpoint["global_step"]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.spent, self.random = float(state["seconds"]), state

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        log_steps_early(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        log_step(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.ckpt_path:
            self.restore(trainer)
        else:
            distributed.own_randomness()
        self.begun = True

    def restore(self, trainer: L.Trainer) -> None:
        """Before the first step, or without one, when the stage had made all of them. Raises ValueError for a
        checkpoint that was restored and does not fit together."""
        if self.begun:
            return
        if self.random is None:
            raise ValueError("it has no states of callbacks")
        own = self.random["ranks"][distributed.rank()] if distributed.world() > 1 else self.random
        torch.set_rng_state(own["cpu"].cpu())
        if torch.cuda.is_available() and own["cuda"]:
            states = [state.cpu() for state in own["cuda"]]
            torch.cuda.set_rng_state(states[0]) if distributed.world() > 1 else torch.cuda.set_rng_state_all(states)
        self.random = None
        loader = trainer.train_dataloader
        if not loader.yielded:  # Lightning restores the loader in the middle of an epoch only, not between two
            loader.epoch = max(loader.epoch, trainer.current_epoch)
        if wrong := misplaced(trainer, self.step) or next(map(unfit, trainer.optimizers), ""):
            raise ValueError(wrong)


def misplaced(trainer: L.Trainer, step: int) -> str:
    """Which of a restored Trainer's counters cannot be those after `step` optimizer steps; empty for none."""
    if not all(isinstance(count, int) and count >= 0 for count in counters(trainer.fit_loop.state_dict())):
        return "its loops have a counter that is no whole number"
    progress, loader = trainer.fit_loop.epoch_loop.batch_progress, trainer.train_dataloader
    begun, inside = trainer.current_epoch * trainer.num_training_batches, progress.current.ready
    if step != begun + inside and not (step == begun and progress.is_last_batch):
        return f"its loops are at batch {inside} of epoch {trainer.current_epoch}, and not at step {step}"
    if loader.yielded not in (0, inside) or not 0 <= loader.epoch - trainer.current_epoch <= (loader.yielded == 0):
        return f"its data are at batch {loader.yielded} of epoch {loader.epoch}, and its loops elsewhere"
    schedules = [config.scheduler for config in trainer.lr_scheduler_configs]
    rates = [rate for schedule in schedules for rate in schedule.base_lrs]
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    if rates != [group["initial_lr"] for group in groups]:
        return "its schedule is of other rates"
    if other := [x for x in (trainer.global_step, *(s.last_epoch for s in schedules)) if x != step]:
        return f"its schedule has counted {other[-1]} steps and not {step}"
    calls = [schedule._step_count for schedule in schedules]  # torch makes one call at the start
    return "" if calls == [step + 1] * len(calls) else f"its schedule has made {calls[0]} calls and not {step + 1}"


def counters(state: Any) -> Iterator[Any]:
    """The leaves of a state of loops."""
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, list) else None
    return chain.from_iterable(map(counters, parts)) if parts is not None else iter((state,))


def unfit(optimizer: torch.optim.Optimizer) -> str:
    """What of a restored optimizer's state is not of its parameters; empty for nothing."""
    for group in optimizer.param_groups:
        if other := [name for name, value in optimizer.defaults.items() if type(group.get(name)) is not type(value)]:
            return f"its optimizer has another {other[0]}"
        for parameter in filter(optimizer.state.get, group["params"]):
            state = optimizer.state[parameter]
            sizes = [state[name].shape if isinstance(state.get(name), torch.Tensor) else None for name in ADAMW]
            if sizes != [(), parameter.shape, parameter.shape]:
                return "its optimizer is that of another network"
            if not all(state[name].isfinite().all() for name in ADAMW):
                return "its optimizer has a number that is not finite"
    return ""
