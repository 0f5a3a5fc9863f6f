"""What one stage fits: a LightningModule around the network, and the sentences."""

from __future__ import annotations

import copy
from dataclasses import asdict, replace
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
        losses=loss_weights(name, stage),
        layer_map=parts.layers,
        shape=student_shape(parts),
        forward_mode=parts.config.student.forward,
        augment=augment(parts),
        stepwise=stepwise,
        **_common(parts, stage),
    )


def loss_weights(name: str, stage: Stage) -> LossWeights:
    """Where units are removed the limit of the additions falls to its value as they go, from the multiplications of the
    dense student: firing that is limited at once drowns what the other terms teach."""
    weights = LossWeights(**asdict(stage.losses))
    if name != "spatial" or not weights.additions_limit:
        return weights
    return replace(weights, additions_from=max(1.0, weights.additions_limit), additions_fall=stage.end)


def augment(parts: RunContext) -> Augment | None:
    share = parts.config.data.replace_words
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
    corpus = {"sources": data.corpus, "tokenizer": parts.tokenizer}
    batches = {"max_length": data.max_length, "batch_size": batch_size, "seed": parts.config.seed}
    return distributed.first(lambda: CorpusData(**corpus, **batches, pad_to=pad_to))
