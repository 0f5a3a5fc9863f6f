"""Trainers: one that fits a stage, one that measures."""

from __future__ import annotations

from collections.abc import Sequence

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from spikeprune.config.schema import Config
from spikeprune.experiment import processes
from spikeprune.experiment.build import arithmetic
from spikeprune.experiment.build.callbacks import stage_callbacks
from spikeprune.experiment.context import RunContext
from spikeprune.experiment.estimate import stage_steps
from spikeprune.experiment.run_directory import RunDirectory
from spikeprune.experiment.terminal import EpochLines, FirstSteps, bars
from spikeprune.training.callbacks.preempt import StopOnSignal
from spikeprune.training.callbacks.records import RecordsLogger
from spikeprune.training.callbacks.resume import AtomicCheckpointIO
from spikeprune.training.lightning_patches import without_sigterm_broadcast

CLIP = 1.0  # gradient norm


def trainer(context: RunContext, name: str, run: RunDirectory, offset: int) -> L.Trainer:
    """The Trainer of one stage. `offset`: optimizer steps of the stages before."""
    config, stage, planned = context.config, context.stage(name), stage_steps(context)
    shown = bars(planned, name)
    loggers: list[Logger] = [RecordsLogger(run.append_metrics, context.tracker.log, stage=name, offset=offset)]
    if config.run.tensorboard:
        loggers.append(TensorBoardLogger(run.path, "tensorboard", version=name))
    made = L.Trainer(
        **processes.placement(config),
        precision=arithmetic.precision(config),
        deterministic=config.run.deterministic,
        max_epochs=max(1, stage.epochs),  # a stage of none stops itself (see training/callbacks/mask_search.py)
        gradient_clip_val=CLIP,
        callbacks=[*shown, FirstSteps(planned, name), EpochLines(planned, name), *stage_callbacks(context, name, run)],
        plugins=[AtomicCheckpointIO()],
        logger=loggers,
        log_every_n_steps=config.run.log_every,
        check_val_every_n_epoch=config.run.validate_every,
        enable_progress_bar=bool(shown),
        enable_model_summary=False,
        use_distributed_sampler=False,  # the loaders share out batches among processes by themselves
        num_sanity_val_steps=0,  # a sanity check would count operations of nothing
    )
    return without_sigterm_broadcast(made)


def evaluator(config: Config, callbacks: Sequence[Callback]) -> L.Trainer:
    """A Trainer that measures: in float32 whatever the training's precision was, but for float64."""
    shown = bars()
    return L.Trainer(
        **processes.placement(config),
        deterministic=config.run.deterministic,
        precision="64-true" if config.run.precision == "64-true" else "32-true",
        callbacks=[*callbacks, *shown, StopOnSignal()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=bool(shown),
        enable_model_summary=False,
        use_distributed_sampler=False,  # the loaders share out batches among processes by themselves
        num_sanity_val_steps=0,  # a sanity check would count operations of nothing
    )
