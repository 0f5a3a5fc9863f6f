"""SynapsePruning: single weights, or blocks of them, are set to zero on a cubic schedule, and stay zero."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.nn.functional import pad

from spikeprune.errors import check_counts, check_share
from spikeprune.models.sparsity import allowed_mask, saliency, share, weights_of
from spikeprune.models.variants import add_synapse_masks
from spikeprune.pruning.schedules import cubic, keep_highest
from spikeprune.training.callbacks.schedule import EpochSchedule
from spikeprune.training.protocol import student_of


class SynapsePruning(EpochSchedule):
    """Lowers the share of synapses between kept units to `kept` between epochs `begin` and `end`, alike in each matrix,
    and sets pruned ones to zero again after each optimizer step, whose momentum moves them. `kept` 1 removes none.

    The synapses of the smallest saliency are removed, |weight| times the threshold of the neuron before it: magnitude
    pruning (Han et al. 2015, arXiv 1506.02626) of the weights that spikes see. A `block` of several outputs, next to
    each other among the kept ones, keeps or loses its synapses from one input together, by the sum of their saliencies;
    one vector instruction adds it. `kept` is then the share of blocks. Comes after the callback that removes units, and
    before callbacks that write checkpoints, which a student reads its synapses from.
    Example: `Trainer(callbacks=[SynapsePruning(kept=0.25)])`
    """

    def __init__(self, *, kept: float, block: int = 1, begin: int = 0, end: int | None = None):
        super().__init__(begin=begin, end=end)
        check_share("kept", kept)
        check_counts(1, block=block)
        self.kept, self.block = kept, block

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        add_synapse_masks(student_of(pl_module))

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        student = student_of(pl_module)
        student.synapses.apply_masks(student)

    def decide(self, trainer: L.Trainer, module: L.LightningModule, progress: float) -> None:
        student, target = student_of(module), cubic(progress, self.kept)
        if target == 1.0:
            return
        with torch.no_grad():
            for i, name, weight in weights_of(student):
                allowed = allowed_mask(student, i, name)
                alive = student.synapses.mask(i, name) * allowed
                kept = keep_blocks(saliency(student, i, name) * allowed, alive, allowed, target, self.block)
                weight.mul_(torch.where(allowed > 0, kept, 1.0))  # synapses of masked units cost nothing
        student.synapses.refresh_masks(student)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """As in SpatialPruning."""
        pl_module.log("compress/synapses", share(student_of(pl_module)))


def keep_blocks(scores: Tensor, alive: Tensor, allowed: Tensor, share: float, block: int) -> Tensor:
    """0/1 mask `[out, in]` of the synapses in the highest blocks of `block` outputs by one input, this share of all
    blocks. All are `[out, in]`; blocks are counted over the rows that `allowed` has, as compaction leaves them."""
    rows, mask = allowed.any(1).nonzero()[:, 0], torch.zeros_like(alive)
    if not len(rows):
        return mask
    fill = (0, 0, 0, -len(rows) % block)
    score, alive, allowed = (pad(x[rows], fill).unflatten(0, (-1, block)) for x in (scores, alive, allowed))
    score, alive, allowed = score.sum(1), alive.amax(1), allowed.amax(1)  # [blocks, in]
    keep = min(round(share * int(allowed.sum())), int(alive.sum()))
    kept = keep_highest(score.view(1, -1), alive.view(1, -1), keep, floor=0, scope="global").view_as(score)
    mask[rows] = kept.repeat_interleave(block, 0)[: len(rows)]
    return mask
