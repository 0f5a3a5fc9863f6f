"""Trainers: one that fits a stage, one that measures."""

from __future__ import annotations

from collections.abc import Sequence

import lightning as L
from lightning.pytorch.callbacks import Callback

from spikeprune import processes
from spikeprune.builders import arithmetic
from spikeprune.builders.callbacks import stage_callbacks
from spikeprune.callbacks.preempt import StopOnSignal
from spikeprune.callbacks.records import RecordsLogger
from spikeprune.callbacks.resume import AtomicCheckpointIO
from spikeprune.lightning_patches import without_sigterm_broadcast
from spikeprune.parts import Parts
from spikeprune.rundir import RunDir
from spikeprune.schema import Config
from spikeprune.terminal import bars
from spikeprune.tracking import live

# the loaders share out batches among processes by themselves; a sanity check would count operations of nothing
COMMON = {"use_distributed_sampler": False, "num_sanity_val_steps": 0}
CLIP = 1.0  # gradient norm
QUIET = {"enable_model_summary": False}


def trainer(parts: Parts, name: str, run: RunDir, offset: int) -> L.Trainer:
    """The Trainer of one stage. `offset`: optimizer steps of the stages before."""
    config, stage, shown = parts.config, parts.stage(name), bars()
    made = L.Trainer(
        **processes.placement(config),
        precision=arithmetic.precision(config),
        max_epochs=max(1, stage.epochs),  # a stage of none stops itself (see callbacks/search.py)
        gradient_clip_val=CLIP,
        callbacks=[*shown, *stage_callbacks(parts, name, run)],
        plugins=[AtomicCheckpointIO()],
        logger=RecordsLogger(run, stage=name, offset=offset, also=live.log_record),
        log_every_n_steps=config.run.log_every,
        check_val_every_n_epoch=config.run.validate_every,
        enable_progress_bar=bool(shown),
        **COMMON,
        **QUIET,
    )
    return without_sigterm_broadcast(made)


def evaluator(config: Config, callbacks: Sequence[Callback] = ()) -> L.Trainer:
    """A Trainer that measures: float32 whatever the training's precision was."""
    shown = bars()
    return L.Trainer(
        **processes.placement(config),
        precision="64-true" if config.run.precision == "64-true" else "32-true",
        callbacks=[*callbacks, *shown, StopOnSignal()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=bool(shown),
        **COMMON,
        **QUIET,
    )
