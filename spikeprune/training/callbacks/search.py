"""MaskSearch: heads and neurons chosen at once, without retraining or before it."""

from __future__ import annotations

import copy

import lightning as L

from spikeprune.pruning.mask_search import search
from spikeprune.pruning.mask_tuning import tune
from spikeprune.training.callbacks.schedule import EpochSchedule, adopt, agreed


class MaskSearch(EpochSchedule):
    """Decides once, at epoch `begin`: masks within the share `operations`, then weights that make up for what
    left (see `pruning/mask_search.py`). `alone`: the stage has no epochs, so it ends with the decision."""

    def __init__(
        self,
        *,
        operations: float,
        min_heads: int,
        min_ffn: int,
        batch_size: int,
        seed: int,
        begin: int,
        alone: bool,
        batches: int = 16,
    ):
        super().__init__(begin=begin, end=begin)
        self.operations, self.alone = operations, alone
        self.floors = {"heads": min_heads, "ffn": min_ffn}
        self.batches, self.batch_size, self.seed = batches, batch_size, seed

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.alone:
            self.decide(trainer, pl_module, 1.0)
            adopt(pl_module.student)
            self.decided = self.begin
            trainer.should_stop = True  # before the first epoch: not a step is made

    def decide(self, trainer: L.Trainer, module: L.LightningModule, progress: float) -> None:
        student = module.student
        batches = trainer.datamodule.fixed_batches(self.batches, self.batch_size, self.seed)
        batches = [{key: value.to(module.device) for key, value in batch.items()} for batch in batches]
        if module.losses.soft:  # as in SpatialPruning
            batches = [module.varied(batch) for batch in batches]

        whole = copy.deepcopy(student)
        how = {"mode": module.forward_mode, "mean": agreed}
        limits = {"operations": self.operations, "floors": self.floors}
        facts = search(student, batches, module.sample_loss, shape=module.shape, **limits, **how)
        errors = tune(student, whole, batches, module.sample_loss, **how)
        adopt(student, weights=True)
        facts |= {f"error_{key}": sum(pair[i] for pair in errors) for i, key in enumerate(("before", "after"))}
        facts |= {name: getattr(student, name).mean().item() for name in ("heads", "ffn")}
        for logger in trainer.loggers:
            logger.log_metrics({f"compress/{name}": value for name, value in facts.items()}, step=trainer.global_step)
