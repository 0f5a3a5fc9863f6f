"""The callbacks of a stage: those that its row names, then what every stage has."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from spikeprune.config.schema import Spatial, Stage, Temporal
from spikeprune.cost.energy import PRICES
from spikeprune.experiment.build.networks import student_shape, teacher_shape
from spikeprune.experiment.context import RunContext
from spikeprune.experiment.run_directory import RunDirectory
from spikeprune.pruning.budget_report import cost_in_unit
from spikeprune.training import distributed
from spikeprune.training.callbacks.finite import StopOnNonFinite
from spikeprune.training.callbacks.joint import BudgetPruning
from spikeprune.training.callbacks.preempt import StopOnSignal
from spikeprune.training.callbacks.quantize import WeightQuantization
from spikeprune.training.callbacks.resume import ResumeState
from spikeprune.training.callbacks.schedule import last_decision
from spikeprune.training.callbacks.search import MaskSearch
from spikeprune.training.callbacks.spatial import SpatialPruning
from spikeprune.training.callbacks.synapses import KeepPrunedSynapses, SynapsePruning
from spikeprune.training.callbacks.synops import SynOpsLogger
from spikeprune.training.callbacks.temporal import TemporalPruning

SETTLED = 0.5  # share of a joint stage's epochs at which its target is reached; from there it is held
RECOVER = 0.25  # last share of a joint stage's epochs that only trains: masks and steps stay as they are


def spatial(parts: RunContext, stage: Stage) -> SpatialPruning | MaskSearch:
    c = parts.config.compress
    if c.spatial.criterion == "kwon":
        return mask_search(parts, stage)
    floors = {"scope": c.spatial.scope, "min_heads": c.spatial.min_heads, "min_ffn": c.spatial.min_ffn}
    return SpatialPruning(heads=c.heads, ffn=c.ffn, **floors, **_decisions(parts, stage, c.spatial))


def mask_search(parts: RunContext, stage: Stage) -> MaskSearch:
    how, floors = parts.config.compress.spatial, ("min_heads", "min_ffn")
    when = {key: value for key, value in _decisions(parts, stage, how).items() if key not in ("criterion", "end")}
    when |= {"operations": how.operations, "alone": stage.epochs == 0}
    return MaskSearch(**when, **{name: getattr(how, name) for name in floors})


def synapses(parts: RunContext, stage: Stage) -> SynapsePruning:
    c = parts.config.compress
    return SynapsePruning(kept=c.synapses, begin=0, end=last_decision(c.spatial.end, stage.epochs))


def temporal(parts: RunContext, stage: Stage) -> TemporalPruning:
    c = parts.config.compress
    return TemporalPruning(t_steps=c.t_steps, **_decisions(parts, stage, c.temporal))


def _decisions(parts: RunContext, stage: Stage, how: Spatial | Temporal) -> dict[str, Any]:
    """When a pruning callback decides, by which criterion, on which batches."""
    batch_size = stage.batch_size or parts.config.data.batch_size
    data = {"batch_size": batch_size, "seed": parts.config.seed}
    return {"criterion": how.criterion, "begin": 0, "end": last_decision(how.end, stage.epochs), **data}


def quantize(parts: RunContext, stage: Stage) -> WeightQuantization:
    return WeightQuantization(begin=0, end=last_decision(parts.config.compress.quantize.end, stage.epochs))


def joint(parts: RunContext, stage: Stage) -> BudgetPruning:
    c, config = parts.config.compress, parts.config
    how, epochs = c.joint, stage.epochs
    end = max(0, epochs - 1 - max(1, round(RECOVER * epochs)))
    return BudgetPruning(
        target=c.target,
        share=c.target_value,
        relative_to=c.target_of,
        candidates=how.candidates,
        min_heads=c.spatial.min_heads,
        min_ffn=c.spatial.min_ffn,
        batch_size=config.data.eval_batch_size,
        seed=config.seed,
        shape=student_shape(parts),
        dense_shape=teacher_shape(parts),
        prices=PRICES[config.cost.prices],
        begin=0,
        settle=min(last_decision(SETTLED, epochs), end),
        end=end,
    )


CALLBACKS = {"spatial": spatial, "temporal": temporal, "quantize": quantize, "joint": joint}


def stage_callbacks(parts: RunContext, name: str, run: RunDirectory) -> list[Callback]:
    """What stops a stage at a number that is none, before anything is made of it, the stage's own callbacks, then what
    every stage has; the checkpoint comes last, so it sees their decisions."""
    stage, every = parts.stage(name), parts.config.run.checkpoint_every
    when = {"every_n_train_steps": every} if every else {"every_n_epochs": 1, "save_on_train_epoch_end": True}
    names = sorted(stage.callbacks, key=lambda callback: callback == "joint")  # it measures what the others have made
    callbacks: list[Callback] = [CALLBACKS[callback](parts, stage) for callback in names]
    for callback in callbacks:
        if isinstance(callback, BudgetPruning):
            callback.reference = distributed.first(lambda: reference(parts, run))
    if parts.config.compress.synapses < 1 and name != "teacher":
        if "spatial" in stage.callbacks:
            callbacks.insert(names.index("spatial") + 1, synapses(parts, stage))
        callbacks.append(KeepPrunedSynapses())
    if name not in ("teacher", "general_kd"):
        callbacks.append(synops(parts))
    resume = ModelCheckpoint(run.stage(name), "resume", save_top_k=1, enable_version_counter=False, **when)
    finite = StopOnNonFinite(name, parts.config.run.precision)
    return [finite, *callbacks, ResumeState(), StopOnSignal(run.resume(name)), resume]


def reference(parts: RunContext, run: RunDirectory) -> float | None:
    """What the uncompressed student costs in the unit of the budget, as the last stage before compression measured it;
    None where compression comes first."""
    students = [name for name in parts.active() if name != "teacher"]
    first = next(i for i, name in enumerate(students) if parts.stage(name).callbacks)
    if not first:
        return None
    measured = run.record(students[first - 1])["cost"]
    return cost_in_unit(parts.config.compress.target, measured, run.record("teacher")["cost"])


def synops(parts: RunContext) -> SynOpsLogger:
    return SynOpsLogger(shape=student_shape(parts), prices=PRICES[parts.config.cost.prices])
