"""SynapsePruning: single weights leave on a cubic schedule; KeepPrunedSynapses: what has left stays away."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch

from spikeprune.models.sparsity import allowed_mask, saliency, share, weights_of
from spikeprune.pruning.schedules import cubic, keep_highest
from spikeprune.training.callbacks.schedule import EpochSchedule


class SynapsePruning(EpochSchedule):
    """Lowers the share of synapses between kept units to `kept` between epochs `begin` and `end`, alike in each matrix.

    Those go over which a spike adds least, |weight| times the threshold that it stands for: magnitude pruning (Han et
    al. 2015, arXiv 1506.02626) of the weights that spikes see. Comes after the callback that removes units.
    """

    def __init__(self, *, kept: float, begin: int, end: int):
        super().__init__(begin=begin, end=end)
        self.kept = kept

    def decide(self, trainer: L.Trainer, module: L.LightningModule, progress: float) -> None:
        student, target = module.student, cubic(progress, 1.0, self.kept)
        with torch.no_grad():
            for i, name, weight in weights_of(student):
                room = allowed_mask(student, i, name)
                left = student.synapses.mask(i, name) * room
                keep = min(round(target * int(room.sum())), int(left.sum()))
                ranked = saliency(student, i, name).view(1, -1)
                stays = keep_highest(ranked, left.reshape(1, -1), keep, floor=0, scope="global").view_as(weight)
                weight.mul_(torch.where(room > 0, stays, 1.0))  # what joins no kept units costs nothing
        student.synapses.refresh_masks(student)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """As in SpatialPruning."""
        pl_module.log("compress/synapses", share(pl_module.student))


class KeepPrunedSynapses(L.Callback):
    """After each step weights without a synapse are zero again: an optimizer's momentum moves them. Comes before what
    writes checkpoints, which a student reads its synapses from."""

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        pl_module.student.synapses.apply_masks(pl_module.student)
