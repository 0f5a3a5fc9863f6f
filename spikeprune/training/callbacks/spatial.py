"""SpatialPruning: attention heads and feed-forward neurons leave on a cubic schedule."""

from __future__ import annotations

import lightning as L
import torch

from spikeprune.errors import known
from spikeprune.pruning.criteria import CRITERIA
from spikeprune.pruning.schedules import SCOPES, cubic, keep_highest
from spikeprune.pruning.statistics import collect
from spikeprune.training.callbacks.schedule import EpochSchedule, agreed


class SpatialPruning(EpochSchedule):
    """Lowers the shares of kept heads and neurons to `heads` and `ffn` between epochs `begin` and `end`.

    `criterion` is a name in CRITERIA, `scope` global or layer, `min_heads` and `min_ffn` floors in every layer;
    `batches` training batches of `batch_size` feed the criterion.
    """

    def __init__(
        self,
        *,
        heads: float,
        ffn: float,
        criterion: str,
        scope: str,
        min_heads: int,
        min_ffn: int,
        batch_size: int,
        seed: int,
        begin: int,
        end: int,
        batches: int = 16,
    ):
        super().__init__(begin=begin, end=end)
        known("criterion", criterion, CRITERIA)
        known("scope", scope, SCOPES)
        self.targets = {"heads": heads, "ffn": ffn}
        self.floors = {"heads": min_heads, "ffn": min_ffn}
        self.criterion, self.scope = CRITERIA[criterion], scope
        self.batches, self.batch_size, self.seed = batches, batch_size, seed

    def decide(self, trainer: L.Trainer, module: L.LightningModule, progress: float) -> None:
        student = module.student
        batches = trainer.datamodule.fixed_batches(self.batches, self.batch_size, self.seed)
        batches = ({key: value.to(module.device) for key, value in batch.items()} for batch in batches)
        if module.losses.soft:  # the teacher answers changed sentences too; a true label would not fit them
            batches = map(module.varied, batches)
        stats = collect(student, batches, module.sample_loss, mode=module.forward_mode, seed=self.seed)
        scores = dict(zip(("heads", "ffn"), self.criterion(stats), strict=True))
        for name, target in self.targets.items():
            mask = getattr(student, name)
            share = cubic(progress, 1.0, target)
            keep = min(round(share * mask.numel()), int(mask.sum()))
            score = agreed(scores[name])  # every rank decides the same
            with torch.no_grad():
                mask.copy_(keep_highest(score, mask, keep, floor=self.floors[name], scope=self.scope))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """At the end, from the masks themselves: a record of the start would be lost to a leg that resumes later."""
        pl_module.log("compress/heads", pl_module.student.heads.mean())
        pl_module.log("compress/ffn", pl_module.student.ffn.mean())
