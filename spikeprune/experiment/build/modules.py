"""What one stage fits: a LightningModule around the network, and the sentences."""

from __future__ import annotations

import copy
from dataclasses import asdict
from typing import Any

import lightning as L

from spikeprune.config.schema import Stage
from spikeprune.data.augmentation import Augment, replaceable
from spikeprune.data.batching import PAD_REPLAYED, PAD_TO
from spikeprune.data.corpus import CorpusData
from spikeprune.experiment.build.arithmetic import cuda_graphs, kernels
from spikeprune.experiment.build.networks import student_shape
from spikeprune.experiment.context import RunContext
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.teacher import Teacher
from spikeprune.training import distributed
from spikeprune.training.modules.student import DistillationModule
from spikeprune.training.modules.teacher import TeacherModule
from spikeprune.training.objective import LossWeights
from spikeprune.training.optimizer import Optimization


def teacher_module(parts: RunContext, learning: Teacher) -> TeacherModule:
    return TeacherModule(learning, **_common(parts, parts.stage("teacher")))


def student_module(
    parts: RunContext, name: str, learning: SpikingBert, frozen: Teacher, *, stepwise: bool = False
) -> DistillationModule:
    stage = parts.stage(name)
    learning.use_kernels(kernels(parts.config))
    return DistillationModule(
        learning,
        frozen,
        losses=LossWeights(**asdict(stage.losses)),
        layer_map=parts.layer_map,
        shape=student_shape(parts),
        forward_mode=parts.config.student.forward,
        augment=augment(parts),
        stepwise=stepwise,
        graphed_answers=parts.config.run.cuda_graphs == "on",
        **_common(parts, stage),
    )


def augment(parts: RunContext) -> Augment | None:
    share = parts.config.distill.replace_words
    return Augment(replace_words=share, words=replaceable(parts.tokenizer)) if share else None


def _common(parts: RunContext, stage: Stage) -> dict[str, Any]:
    how = Optimization(stage.lr, stage.theta_lr, stage.warmup, stage.weight_decay)
    return {
        "task": parts.task,
        "dev_splits": parts.task.dev_splits,
        "optimization": how,
        "graphs": cuda_graphs(parts.config),
    }


def stage_data(parts: RunContext, name: str) -> L.LightningDataModule:
    """The task's sentences, or for general_kd the corpus. Training batches are padded to a multiple of PAD_TO tokens,
    where CUDA graphs replay their steps of PAD_REPLAYED."""
    pad_to = PAD_REPLAYED if cuda_graphs(parts.config) else PAD_TO
    data, batch_size = parts.config.data, parts.stage(name).batch_size or parts.config.data.batch_size
    if name != "general_kd":
        mine = copy.copy(parts.data)  # the tokens are shared
        mine.batch_size, mine.pad_to = batch_size, pad_to
        return mine
    corpus = {"sources": data.corpus, "limit": data.corpus_limit, "tokenizer": parts.tokenizer}
    batches = {"max_length": data.max_length, "batch_size": batch_size, "seed": parts.config.seed}
    return distributed.first(lambda: CorpusData(**corpus, **batches, pad_to=pad_to))
