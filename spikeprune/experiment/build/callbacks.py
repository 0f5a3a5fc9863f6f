"""The callbacks of a stage: those that its row names, then what every stage has."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from lightning.pytorch.callbacks import Callback

from spikeprune import distributed
from spikeprune.config.derived import last_uncompressed, least_neurons, prunes_synapses, runs
from spikeprune.config.schema import Compression
from spikeprune.experiment.build.arithmetic import replays
from spikeprune.experiment.build.networks import teacher_shape
from spikeprune.experiment.context import RunContext
from spikeprune.experiment.run_directory import RunDirectory
from spikeprune.kernels.cuda_graphs import GraphedNorms
from spikeprune.pruning.budget import Budget, cost_in_unit
from spikeprune.training.callbacks.budget import BudgetPruning
from spikeprune.training.callbacks.cost_logger import CostLogger
from spikeprune.training.callbacks.finite import StopOnNonFinite
from spikeprune.training.callbacks.mask_search import MaskSearch
from spikeprune.training.callbacks.preempt import StopOnSignal
from spikeprune.training.callbacks.quantization import WeightQuantization
from spikeprune.training.callbacks.resume import ResumeCheckpoint, ResumeState
from spikeprune.training.callbacks.schedule import last_decision
from spikeprune.training.callbacks.spatial import SpatialPruning
from spikeprune.training.callbacks.synapses import SynapsePruning
from spikeprune.training.callbacks.temporal import TemporalPruning

Build = Callable[[RunContext, str], list[Callback]]


def spatial(context: RunContext, name: str) -> list[Callback]:
    stage, config = context.stage(name), context.config
    least, when = least_neurons(context.teacher_config.intermediate_size), decisions(context, stage)
    if stage.criterion == "kwon":
        search = MaskSearch(
            operations=stage.operations,
            alone=stage.epochs == 0,
            min_heads=1,
            min_ffn=least,
            begin=0,
            batch_size=when["batch_size"],
            seed=when["seed"],
        )
        return [search]
    made: list[Callback] = [
        SpatialPruning(
            heads=stage.heads,
            ffn=stage.ffn,
            criterion=stage.criterion,
            scope=stage.scope,
            min_heads=1,
            min_ffn=least,
            **when,
        )
    ]
    if prunes_synapses(config):
        made.append(SynapsePruning(kept=stage.synapses, block=stage.block, begin=0, end=when["end"]))
    return made


def temporal(context: RunContext, name: str) -> list[Callback]:
    stage = context.stage(name)
    return [TemporalPruning(t_steps=stage.t_steps, criterion=stage.criterion, **decisions(context, stage))]


def quantize(context: RunContext, name: str) -> list[Callback]:
    stage = context.stage(name)
    return [WeightQuantization(begin=0, end=last_decision(stage.end, stage.epochs))]


def budget(context: RunContext, name: str) -> list[Callback]:
    """Of the stage budget, and of fine-tuning after it."""
    target, config, epochs = context.config.stages.budget, context.config, context.stage(name).epochs
    made = BudgetPruning(
        target=target.target,
        share=target.value,
        candidates=target.candidates,
        min_heads=1,
        min_ffn=least_neurons(context.teacher_config.intermediate_size),
        batch_size=config.data.eval_batch_size,
        seed=config.seed,
        dense_shape=teacher_shape(context),
        model=config.cost.model,
        settle=last_decision(target.end, epochs),
        learn=name == "budget",
    )
    return [made]


def decisions(context: RunContext, stage: Compression) -> dict[str, Any]:
    """When a pruning callback decides, and on which batches."""
    end = last_decision(stage.end, stage.epochs)
    return {"begin": 0, "end": end, "batch_size": stage.batch_size, "seed": context.config.seed}


COMPRESSING: dict[str, Build] = {
    "spatial": spatial,
    "temporal": temporal,
    "quantize": quantize,
    "budget": budget,
    "finetune": lambda context, name: budget(context, name) if runs(context.config, "budget") else [],
}


def stage_callbacks(context: RunContext, name: str, run: RunDirectory) -> list[Callback]:
    """What stops a stage at a number that is none, before anything is made of it, the stage's own callbacks, then what
    every stage has; the checkpoint comes last, so it sees their decisions."""
    callbacks = COMPRESSING[name](context, name) if name in COMPRESSING else []
    for callback in callbacks:
        if isinstance(callback, BudgetPruning):
            callback.budget.reference = distributed.from_rank_zero(partial(reference, context, run, callback.budget))
    if prunes_synapses(context.config) and name not in ("teacher", "spatial"):
        callbacks.append(SynapsePruning(kept=1.0))
    if name not in ("teacher", "general_kd"):
        callbacks.append(cost_logger(context))
    resume = ResumeCheckpoint(run.stage(name), context.config.run.checkpoint_every)
    graphed_norms = GraphedNorms if replays(context) else None
    finite = StopOnNonFinite(name, context.config.run.precision, graphed_norms)
    return [finite, *callbacks, ResumeState(), StopOnSignal(run.resume(name)), resume]


def reference(context: RunContext, run: RunDirectory, budget: Budget) -> float | None:
    """What the uncompressed student costs in the unit of the budget, as the last stage before compression measured it;
    None where compression comes first."""
    if (name := last_uncompressed(context.config)) is None:
        return None
    return cost_in_unit(budget, run.record(name), run.record("teacher"))


def cost_logger(context: RunContext) -> CostLogger:
    return CostLogger(teacher_shape=teacher_shape(context), model=context.config.cost.model)
