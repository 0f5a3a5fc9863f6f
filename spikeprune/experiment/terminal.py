"""Terminal output of a run: progress bars, this package's own lines, warnings that matter."""

from __future__ import annotations

import logging
import resource
import sys
import warnings
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.utilities import rank_zero_only

from spikeprune.experiment.estimate import duration, seconds_left
from spikeprune.experiment.streams import unrecorded
from spikeprune.report.numbers import digits, energy_unit
from spikeprune.training.callbacks.resume import ResumeState
from spikeprune.training.modules.task import TaskModule

FIRST_STEPS = 10
IDLE_WARNINGS = (
    "in eval mode at the start of training",  # the teacher is frozen
    "does not have many workers",  # data are in memory
    "LeafSpec",  # Lightning's own
    "number of training batches.*smaller than the logging interval",
    "logging on epoch level in distributed",  # all processes log the same
    "have no `val_dataloader`",  # general_kd's text has no labels
    "AccumulateGrad node's stream",  # a CUDA graph is captured on its own
    "`srun` command is available",  # also raised on a login node
    "exists and is not empty",  # a stage's directory, on resume
)


class Bars(TQDMProgressBar):
    """A progress bar on stderr, since stdout is for a command's result; it is gone when its stage ends. `planned`:
    steps of the whole run, if the bar is to show the time left of it (see `time_left`)."""

    def __init__(self, planned: Mapping[str, int] | None = None, stage: str = "", refresh_rate: int = 10):
        super().__init__(refresh_rate)
        self.planned, self.stage = planned, stage

    def init_train_tqdm(self) -> Tqdm:
        with redirect_stdout(unrecorded(sys.stderr)):
            bar = super().init_train_tqdm()
        bar.leave, bar.total = False, self.total_train_batches  # in the middle of an epoch Lightning sets no total
        return bar

    def init_validation_tqdm(self) -> Tqdm:
        with redirect_stdout(unrecorded(sys.stderr)):
            return super().init_validation_tqdm()

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        shown = super().get_metrics(trainer, pl_module)
        left = time_left(trainer, self.planned, self.stage) if self.planned else ""
        return {**shown, "run": left} if left else shown

    def print(self, *parts: Any, **options: Any) -> None:
        """Above the bar. tqdm's own `write` does not clear a bar where `run.log` records the streams."""
        bar = self.train_progress_bar
        bar.clear()
        print(*parts, **options, flush=True)
        bar.refresh()


def bars(planned: Mapping[str, int] | None = None, stage: str = "") -> list[Bars]:
    """Progress bars where stderr is a terminal."""
    return [Bars(planned, stage)] if sys.stderr.isatty() else []


def time_left(trainer: L.Trainer, planned: Mapping[str, int], stage: str) -> str:
    """`12 min left`, of the whole run; empty before the first step. `planned`: see `estimate.stage_steps`."""
    took = next((c.seconds for c in trainer.callbacks if isinstance(c, ResumeState)), 0.0)
    total = trainer.max_epochs * trainer.num_training_batches
    left = seconds_left(planned, stage, done=trainer.global_step, total=total, seconds=took)
    return "" if left is None else f"{duration(left)} left"


class EpochLines(Callback):
    """Prints a line at the end of each epoch: stage, mean loss with its terms (of rank 0's examples), score and energy
    where the epoch was validated, and the time left of the whole run."""

    def __init__(self, planned: Mapping[str, int], stage: str):
        self.planned, self.stage = planned, stage
        self.validated = False
        self.sums: dict[str, torch.Tensor] = {}
        self.batches = 0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: TaskModule, *args: Any) -> None:
        terms = pl_module.terms
        if self.sums.keys() == terms.keys():
            torch._foreach_add_(list(self.sums.values()), list(terms.values()))
        else:
            self.sums = {name: term.float().clone() for name, term in terms.items()}
        self.batches += 1

    def on_validation_end(self, trainer: L.Trainer, pl_module: TaskModule) -> None:
        self.validated = True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: TaskModule) -> None:
        measured = {k: float(v) for k, v in trainer.callback_metrics.items()} if self.validated else {}
        losses = {name: float(total) / self.batches for name, total in self.sums.items()}
        self.validated, self.sums, self.batches = False, {}, 0
        if not trainer.is_global_zero:
            return
        place = f"{self.stage} {trainer.current_epoch + 1}/{trainer.max_epochs}"
        say(trainer, epoch_line(place, losses, measured, time_left(trainer, self.planned, self.stage)))


class FirstSteps(Callback):
    """Prints once, after the first optimizer steps of a stage, the memory that it takes and the time left of the whole
    run: early enough to stop what does not fit."""

    def __init__(self, planned: Mapping[str, int], stage: str):
        self.planned, self.stage = planned, stage
        self.begun: int | None = None

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        self.begun = trainer.global_step if self.begun is None else self.begun

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step - self.begun == FIRST_STEPS and trainer.is_global_zero:
            left = time_left(trainer, self.planned, self.stage)
            say(trainer, f"  {self.stage}: {memory()} after {FIRST_STEPS} steps, {left} of the whole run")


def say(trainer: L.Trainer, line: str) -> None:
    """Above the progress bar, where there is one."""
    bar = trainer.progress_bar_callback
    print_once(line) if bar is None else bar.print(line)


def memory() -> str:
    """The most that this process has taken so far, of the GPU where it uses one."""
    if torch.cuda.is_available() and (taken := torch.cuda.max_memory_allocated()):
        return f"{taken / 1e9:.2f} GB of GPU memory"
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB of memory"  # Linux counts kB


def epoch_line(place: str, losses: Mapping[str, float], measured: Mapping[str, float], left: str) -> str:
    """`losses`: `loss` and its terms; `measured`: what a validation has logged, if there was one."""
    terms = ", ".join(f"{name} {value:.4g}" for name, value in losses.items() if name != "loss")
    words = [f"  {place}"]
    if losses:
        words.append(f"loss {losses['loss']:.4g} ({terms})")
    if "val/main" in measured:
        words.append(f"score {100 * measured['val/main']:.1f}")
    if energy := measured.get("cost/energy_pj"):
        unit, size = energy_unit([energy])
        words.append(f"{digits(energy / size)} {unit}")
    return "  ".join([*words, *([left] if left else [])])


@rank_zero_only
def print_once(line: str) -> None:
    print(line, flush=True)


def quiet() -> None:
    """Silence routine messages of Lightning and transformers."""
    from transformers.utils import logging as transformers_logging

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for message in IDLE_WARNINGS:
        warnings.filterwarnings("ignore", f".*{message}.*")
