"""The schedule that pruning callbacks share: which epochs decide, the progress of each, and one decision an epoch."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor

from spikeprune import distributed
from spikeprune.errors import InputError
from spikeprune.models.modeling import SpikingBert
from spikeprune.training.protocol import require_prunable, student_of

DECIDED = ("heads", "ffn", "t_steps", "strength", "log_theta")  # what a decision changes in a student, by last name
DECIDING = 0.5  # share of the epochs that decide, where `end` is not given; the rest recovers


class EpochSchedule(L.Callback):
    """Calls `decide` at the start of each epoch from `begin` to `end` (both included, counted from 0; `end` None: half
    of the trainer's epochs, see `last_decision`). To add a callback, override `decide` alone.

    The first decision already removes something and the one at `end` has progress 1. The last epoch decided on is part
    of the callback's state, so a run resumed in the middle of an epoch does not decide twice. Another `fit` without a
    checkpoint begins anew. Nothing is decided in the sanity check. `setup` raises InputError for a LightningModule that
    is not a `training.protocol.PrunableModule`.
    """

    def __init__(self, *, begin: int = 0, end: int | None = None):
        if not 0 <= begin or end is not None and end < begin:
            raise ValueError(f"begin and end must be epochs with 0 <= begin <= end, got {begin} and {end}")
        self.begin, self.end, self.given_end = begin, end, end
        self.decided = -1  # last epoch decided on
        self.unused: dict[str, Any] | None = None  # the state before the first fit

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        require_prunable(self, pl_module)
        if stage != "fit":
            return
        if self.unused is None:
            self.unused = self.state_dict()
        else:  # another fit; a checkpoint's state is loaded after this
            self.load_state_dict(self.unused)
        epochs = -1 if trainer.max_epochs is None else trainer.max_epochs
        if self.given_end is None:
            if epochs < 0:
                raise InputError(f"{type(self).__name__} needs `end`, its last deciding epoch, or max_epochs")
            self.end = max(self.begin, last_decision(DECIDING, epochs))

    def progress(self, epoch: int) -> float:
        return (epoch - self.begin + 1) / (self.end - self.begin + 1)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        epoch = trainer.current_epoch
        if trainer.sanity_checking or not self.begin <= epoch <= self.end or epoch <= self.decided:
            return
        self.decide(trainer, pl_module, self.progress(epoch))
        take_from_rank_zero(student_of(pl_module))
        self.decided = epoch

    def decide(self, trainer: L.Trainer, module: L.LightningModule, progress: float) -> None:
        """Change the module's student as far as `progress` (above 0, at most 1) of the way to the target."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        return {"decided": self.decided}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.decided = state["decided"]


def finite_mean(x: Tensor) -> Tensor:
    """`distributed.mean` of the statistics of a decision. Raises InputError, on all processes, where they are not
    finite: scores that are NaN have an order too."""
    x = distributed.mean(x)
    if not x.isfinite().all():
        distributed.from_rank_zero(refuse_decision)
    return x


def refuse_decision() -> None:
    raise InputError(
        "a loss, gradient or cost that this stage's pruning would be decided by is not finite: its weights are too "
        "large; lower the lr of the stages before, in a new run.dir"
    )


@torch.no_grad()
def take_from_rank_zero(student: SpikingBert, weights: bool = False) -> None:
    """Every process takes over rank 0's masks, steps, thresholds and strength, with `weights` all tensors, though all
    have decided from the same statistics: the last bit of a GPU's sum may differ."""
    if distributed.world() == 1:
        return
    state = student.state_dict()
    own = {name: tensor for name, tensor in state.items() if weights or name.rpartition(".")[2] in DECIDED}
    decided = distributed.from_rank_zero(lambda: {name: tensor.cpu() for name, tensor in own.items()})
    for name, tensor in own.items():
        tensor.copy_(decided[name])


def last_decision(end: float, epochs: int) -> int:
    """Share of a stage -> last deciding epoch: `(0.5, 6)` -> 3.

    The last epoch never decides unless it is the only one, so that something is left to recover in.
    """
    return min(int(end * epochs), max(0, epochs - 2))
