"""Config and parts -> objects: models, modules, callbacks, loggers, trainers."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import Logger

from spikeprune import processes, ranks
from spikeprune.callbacks.joint import JointPruning, cost_in_unit
from spikeprune.callbacks.preempt import StopOnSignal
from spikeprune.callbacks.quantize import WeightQuantization
from spikeprune.callbacks.records import RecordsLogger
from spikeprune.callbacks.resume import AtomicCheckpointIO, ResumeState
from spikeprune.callbacks.schedule import stage_epochs
from spikeprune.callbacks.search import MaskSearch
from spikeprune.callbacks.spatial import SpatialPruning
from spikeprune.callbacks.synops import SynOpsLogger
from spikeprune.callbacks.temporal import TemporalPruning
from spikeprune.cost import PRICES
from spikeprune.data.corpus import CorpusData
from spikeprune.errors import InputError
from spikeprune.models.alter import deaden
from spikeprune.models.student import Student
from spikeprune.models.teacher import Teacher, copy_encoder
from spikeprune.modules import LossWeights, Optimization, StudentModule, TeacherModule
from spikeprune.parts import Parts
from spikeprune.rundir import RunDir
from spikeprune.schema import Config, Spatial, Stage, Temporal
from spikeprune.size import Shape
from spikeprune.spiking import kernels as fused
from spikeprune.spiking.neurons import NEURONS
from spikeprune.tracking import StageCharts


def teacher(parts: Parts) -> Teacher:
    """The teacher before it has learnt the task."""
    checkpoint = parts.config.teacher.checkpoint
    if checkpoint:
        return Teacher.load(checkpoint, classes=parts.task.num_labels)
    return Teacher.scratch(parts.teacher_config)


def student_values(parts: Parts) -> dict[str, Any]:
    """Everything that rebuilds the student's architecture: plain values, saved beside its weights."""
    s, bert = parts.config.student, parts.teacher_config
    return {
        "vocab": bert.vocab_size,
        "positions": bert.max_position_embeddings,
        "segments": bert.type_vocab_size,
        "hidden": bert.hidden_size,
        "layers": len(parts.layers),
        "heads": bert.num_attention_heads,
        "ffn": bert.intermediate_size,
        "classes": parts.task.num_labels,
        "t_steps": s.t_steps,
        "spikes": s.spikes,
        "leak": s.leak,
        "theta": s.theta,
        "coding": s.coding,
        "query": s.query,
        "pooling": s.pooling,
        "act": bert.hidden_act,
        "eps": bert.layer_norm_eps,
        "dropout": s.dropout,
        "weights": parts.config.compress.weights,
        "feedback": s.feedback,
        "dead_zone": s.dead_zone_per if s.dead_zone else "none",
        "fold": parts.config.compress.quantize.fold,
    }


def student(parts: Parts, frozen: Teacher, calibration: dict[str, torch.Tensor]) -> Student:
    """The student before it has learnt anything: the teacher's weights or random ones, thetas set from one batch."""
    made = Student(**student_values(parts))
    if parts.config.student.init == "teacher":
        copy_encoder(made, frozen, parts.layers)
    made.eval()
    with torch.no_grad():
        made(
            calibration["input_ids"],
            calibration["attention_mask"],
            calibration["token_type_ids"],
            mode="calibrate",
            percentile=parts.config.student.percentile,
        )
    if parts.config.student.dead_zone:
        deaden(made, calibration, parts.config.student.dead_zone)
    return made.train()


def student_shape(parts: Parts) -> Shape:
    s = parts.config.student
    options = {"gain": NEURONS[s.spikes].gain is not None, "feedback": s.feedback}
    return Shape(pooling=s.pooling, query=s.query, theta=s.theta, **options, **_sizes(parts, len(parts.layers)))


def teacher_shape(parts: Parts) -> Shape:
    return Shape(pooling="cls", query="real", theta="none", **_sizes(parts, parts.teacher_config.num_hidden_layers))


def _sizes(parts: Parts, layers: int) -> dict[str, Any]:
    bert = parts.teacher_config
    return {
        "hidden": bert.hidden_size,
        "heads": bert.num_attention_heads,
        "ffn": bert.intermediate_size,
        "layers": layers,
        "classes": parts.task.num_labels,
        "vocab_size": bert.vocab_size,
        "positions": bert.max_position_embeddings,
        "types": bert.type_vocab_size,
    }


def stage_data(parts: Parts, name: str) -> L.LightningDataModule:
    """The task's sentences, or for general_kd the corpus."""
    data, batch_size = parts.config.data, parts.stage(name).batch_size or parts.config.data.batch_size
    if name != "general_kd":
        mine = copy.copy(parts.data)  # the tokens are shared
        mine.batch_size = batch_size
        return mine
    corpus = {"sources": data.corpus, "limit": data.corpus_limit, "tokenizer": parts.tokenizer}
    batches = {"max_length": data.max_length, "batch_size": batch_size, "seed": parts.config.seed}
    return ranks.first(lambda: CorpusData(**corpus, **batches, pad_to=data.pad_to))


def _common(parts: Parts, stage: Stage) -> dict[str, Any]:
    how = Optimization(stage.lr, stage.theta_lr, stage.warmup, stage.weight_decay)
    return {
        "task": parts.task,
        "dev_splits": parts.task.dev_splits,
        "optimization": how,
        "graphs": cuda_graphs(parts.config),
    }


def teacher_module(parts: Parts, learning: Teacher) -> TeacherModule:
    return TeacherModule(learning, **_common(parts, parts.stage("teacher")))


def kernels(config: Config) -> str:
    """`torch` or `triton`: what the spiking sites compute with. Raises InputError for triton where it cannot run.

    `auto` is triton where the machine has it and the kernels cover the run: not on the CPU, not LIF, not float64.
    """
    run, lacking = config.run, fused.lacking()
    if run.kernels == "triton" and lacking:
        raise InputError(f"run.kernels = triton: needs {lacking}, which is not here; use run.kernels=torch or auto")
    covered = run.accelerator != "cpu" and run.precision != "64-true" and config.student.leak == 1.0
    if run.kernels == "auto":
        return "triton" if covered and not lacking else "torch"
    return run.kernels


def cuda_graphs(config: Config) -> bool:
    """Whether training replays CUDA graphs. Raises InputError where they are asked for without a GPU."""
    run, there = config.run, torch.cuda.is_available() and config.run.accelerator != "cpu"
    if run.cuda_graphs == "on" and not there:
        raise InputError("run.cuda_graphs = on: needs a CUDA device, which is not here; use off or auto")
    return there and run.cuda_graphs != "off" and not config.student.feedback  # which looks at residuals on its way


def student_module(parts: Parts, name: str, learning: Student, frozen: Teacher) -> StudentModule:
    stage = parts.stage(name)
    learning.use_kernels(kernels(parts.config))
    return StudentModule(
        learning,
        frozen,
        losses=LossWeights(**asdict(stage.losses)),
        layer_map=parts.layer_map,
        shape=student_shape(parts),
        forward_mode=parts.config.student.forward,
        replace_words=parts.config.distill.replace_words,
        special=parts.tokenizer.all_special_ids,
        stepwise=parts.config.run.evaluation == "stepwise",
        chunk=parts.config.run.chunk,
        **_common(parts, stage),
    )


def spatial(parts: Parts, stage: Stage) -> SpatialPruning | MaskSearch:
    c = parts.config.compress
    if c.spatial.search == "kwon":
        return mask_search(parts, stage)
    floors = {"scope": c.spatial.scope, "min_heads": c.spatial.min_heads, "min_ffn": c.spatial.min_ffn}
    return SpatialPruning(heads=c.heads, ffn=c.ffn, **floors, **_decisions(parts, stage, c.spatial))


def mask_search(parts: Parts, stage: Stage) -> MaskSearch:
    how, floors = parts.config.compress.spatial, ("min_heads", "min_ffn")
    when = {key: value for key, value in _decisions(parts, stage, how).items() if key not in ("criterion", "end")}
    when |= {"operations": how.operations, "tuned": how.tune, "alone": stage.epochs == 0}
    return MaskSearch(**when, **{name: getattr(how, name) for name in floors})


def temporal(parts: Parts, stage: Stage) -> TemporalPruning:
    c = parts.config.compress
    return TemporalPruning(t_steps=c.t_steps, **_decisions(parts, stage, c.temporal))


def _decisions(parts: Parts, stage: Stage, how: Spatial | Temporal) -> dict[str, Any]:
    """When a pruning callback decides, by which criterion, on which batches."""
    begin, end = stage_epochs(how.begin, how.end, stage.epochs)
    batch_size = stage.batch_size or parts.config.data.batch_size
    data = {"batches": how.batches, "batch_size": batch_size, "seed": parts.config.seed}
    return {"criterion": how.criterion, "begin": begin, "end": end, **data}


def quantize(parts: Parts, stage: Stage) -> WeightQuantization:
    c = parts.config.compress.quantize
    begin, end = stage_epochs(c.begin, c.end, stage.epochs)
    return WeightQuantization(begin=begin, end=end)


def joint(parts: Parts, stage: Stage) -> JointPruning:
    c, config = parts.config.compress, parts.config
    how, epochs = c.joint, stage.epochs
    begin, settle = stage_epochs(how.begin, how.end, epochs)
    return JointPruning(
        target=c.target,
        share=c.target_value,
        relative_to=c.target_of,
        candidates=how.candidates,
        min_heads=c.spatial.min_heads,
        min_ffn=c.spatial.min_ffn,
        block=how.block,
        stride=how.stride,
        sentences=how.sentences,
        split=how.split,
        measured=how.measured,
        batch_size=config.data.eval_batch_size,
        seed=config.seed,
        shape=student_shape(parts),
        dense_shape=teacher_shape(parts),
        prices=PRICES[config.cost.prices],
        begin=begin,
        settle=settle,
        end=epochs - 1,
    )


def reference(parts: Parts, run: RunDir) -> float | None:
    """What the uncompressed student costs in the unit of the budget, as the last stage before compression measured it;
    None where compression comes first."""
    students = [name for name in parts.active() if name != "teacher"]
    first = next(i for i, name in enumerate(students) if parts.stage(name).callbacks)
    if not first:
        return None
    measured = run.record(students[first - 1])["cost"]
    return cost_in_unit(parts.config.compress.target, measured, run.record("teacher")["cost"])


CALLBACKS = {"spatial": spatial, "temporal": temporal, "quantize": quantize, "joint": joint}


def synops(parts: Parts) -> SynOpsLogger:
    return SynOpsLogger(shape=student_shape(parts), prices=PRICES[parts.config.cost.prices])


def stage_callbacks(parts: Parts, name: str, run: RunDir) -> list[Callback]:
    """The stage's own callbacks, then what every stage has; the checkpoint comes last, so it sees their decisions."""
    stage, every = parts.stage(name), parts.config.run.checkpoint_every
    when = {"every_n_train_steps": every} if every else {"every_n_epochs": 1, "save_on_train_epoch_end": True}
    names = sorted(stage.callbacks, key=lambda callback: callback == "joint")  # it measures what the others have made
    callbacks: list[Callback] = [CALLBACKS[callback](parts, stage) for callback in names]
    for callback in callbacks:
        if isinstance(callback, JointPruning):
            callback.reference = ranks.first(lambda: reference(parts, run))
    if name not in ("teacher", "general_kd"):
        callbacks.append(synops(parts))
    resume = ModelCheckpoint(run.stage(name), "resume", save_top_k=1, enable_version_counter=False, **when)
    return [*callbacks, *progress(parts.config), ResumeState(), StopOnSignal(run.resume(name)), resume]


def progress(config: Config) -> list[Callback]:
    return [TQDMProgressBar(refresh_rate=10, leave=True)] if config.run.progress else []


def loggers(parts: Parts, name: str, run: RunDir, offset: int) -> list[Logger]:
    """`offset`: optimizer steps of the stages before."""
    records = RecordsLogger(run, stage=name, offset=offset)
    wanted = parts.config.run.wandb and ranks.rank() == 0
    return [records, StageCharts(stage=name, offset=offset)] if wanted else [records]


def trainer(parts: Parts, name: str, run: RunDir, offset: int) -> L.Trainer:
    """The Trainer of one stage."""
    config, stage = parts.config, parts.stage(name)
    return L.Trainer(
        **processes.placement(config),
        precision="32-true" if config.run.precision == "tf32" else config.run.precision,
        max_epochs=max(1, stage.epochs),  # a stage of none stops itself (see callbacks/search.py)
        gradient_clip_val=stage.clip,
        callbacks=stage_callbacks(parts, name, run),
        plugins=[AtomicCheckpointIO()],
        logger=loggers(parts, name, run, offset),
        log_every_n_steps=config.run.log_every,
        check_val_every_n_epoch=config.run.validate_every,
        enable_progress_bar=config.run.progress,
        **COMMON,
        **QUIET,
    )


@contextmanager
def products(config: Config) -> Iterator[None]:
    """While it lasts, CUDA multiplies float32 matrices in TensorFloat-32 where the configuration says so."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if config.run.precision == "tf32" else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def evaluator(config: Config, callbacks: Sequence[Callback] = ()) -> L.Trainer:
    """A Trainer that measures: float32 whatever the training's precision was."""
    return L.Trainer(
        **processes.placement(config),
        precision="64-true" if config.run.precision == "64-true" else "32-true",
        callbacks=[*callbacks, StopOnSignal()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=config.run.progress,
        **COMMON,
        **QUIET,
    )


def quiet() -> None:
    """Leave the terminal to progress bars, this package's own lines and real warnings."""
    from transformers.utils import logging as transformers_logging

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for message in (".*in eval mode at the start of training.*", ".*does not have many workers.*", ".*LeafSpec.*"):
        warnings.filterwarnings("ignore", message)  # the teacher is frozen; data are in memory; Lightning's own
    warnings.filterwarnings("ignore", ".*number of training batches.*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", ".*logging on epoch level in distributed.*")  # all processes log the same
    warnings.filterwarnings("ignore", ".*have no `val_dataloader`.*")  # general_kd's text has no labels
    warnings.filterwarnings("ignore", ".*AccumulateGrad node's stream.*")  # a CUDA graph is captured on its own
    warnings.filterwarnings("ignore", ".*`srun` command is available.*")  # a login node is a place to measure, too
    warnings.filterwarnings("ignore", ".*exists and is not empty.*")  # a stage's directory, on resume


# the loaders share out batches among processes by themselves; a sanity check would count operations of nothing
COMMON = {"use_distributed_sampler": False, "num_sanity_val_steps": 0}
QUIET = {"enable_model_summary": False}
