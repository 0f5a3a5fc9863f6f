"""SpatialPruning: attention heads and feed-forward neurons are masked on a cubic schedule."""

from __future__ import annotations

import lightning as L
import torch

from spikeprune.errors import check_counts, check_share, known
from spikeprune.pruning.criteria import CRITERIA
from spikeprune.pruning.schedules import SCOPES, cubic, keep_highest
from spikeprune.pruning.statistics import collect
from spikeprune.training.callbacks.schedule import EpochSchedule, finite_mean
from spikeprune.training.protocol import decision_batches, forward_mode, student_of, with_augmentation


class SpatialPruning(EpochSchedule):
    """Lowers the shares of kept heads and neurons to `heads` and `ffn` between epochs `begin` and `end`, on the cubic
    schedule of Zhu & Gupta 2017 (arXiv 1710.01878).

    heads, ffn          shares to keep, in 0..1; 1 keeps all
    criterion           a name in `pruning.criteria.CRITERIA`
    scope               global: one ranking over all layers; layer: an equal share in each
    min_heads, min_ffn  kept in every layer
    batches, seed       training batches that the criterion is computed on
    batch_size          of them, where the datamodule makes them (see `training.protocol`)

    Raises ValueError for an unknown criterion or scope, and for what is no share or count.
    Example: `Trainer(callbacks=[SpatialPruning(heads=0.5, ffn=0.3)])`
    """

    def __init__(
        self,
        *,
        heads: float = 1.0,
        ffn: float = 1.0,
        criterion: str = "fisher",
        scope: str = "global",
        min_heads: int = 1,
        min_ffn: int = 8,
        batches: int = 16,
        batch_size: int = 32,
        seed: int = 0,
        begin: int = 0,
        end: int | None = None,
    ):
        super().__init__(begin=begin, end=end)
        known("criterion", criterion, CRITERIA)
        known("scope", scope, SCOPES)
        self.targets = {"heads": heads, "ffn": ffn}
        for name, target in self.targets.items():
            check_share(name, target)
        check_counts(0, min_heads=min_heads, min_ffn=min_ffn)
        check_counts(1, batches=batches, batch_size=batch_size)
        self.floors = {"heads": min_heads, "ffn": min_ffn}
        self.criterion, self.scope = CRITERIA[criterion], scope
        self.batches, self.batch_size, self.seed = batches, batch_size, seed

    def decide(self, trainer: L.Trainer, module: L.LightningModule, progress: float) -> None:
        student = student_of(module)
        batches = decision_batches(trainer, module, batches=self.batches, batch_size=self.batch_size, seed=self.seed)
        batches = with_augmentation(batches, module)
        stats = collect(student, batches, module.sample_loss, mode=forward_mode(module), seed=self.seed)
        scores = dict(zip(("heads", "ffn"), self.criterion(stats), strict=True))
        for name, target in self.targets.items():
            mask = getattr(student, name)
            keep = min(round(cubic(progress, target) * mask.numel()), int(mask.sum()))
            score = finite_mean(scores[name])  # every rank decides the same
            with torch.no_grad():
                mask.copy_(keep_highest(score, mask, keep, floor=self.floors[name], scope=self.scope))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """At the end, from the masks themselves: values logged at the start are lost to a run that resumes later."""
        student = student_of(pl_module)
        pl_module.log("compress/heads", student.heads.mean())
        pl_module.log("compress/ffn", student.ffn.mean())
