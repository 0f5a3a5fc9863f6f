"""What one stage fits: a LightningModule around the network, and the sentences."""

from __future__ import annotations

import copy
from dataclasses import asdict, replace
from typing import Any

import lightning as L
import torch

from spikeprune import distributed
from spikeprune.config.schema import Stage
from spikeprune.data.augmentation import Augment, replaceable
from spikeprune.data.batching import PAD_REPLAYED, PAD_TO
from spikeprune.data.corpus import CorpusData
from spikeprune.experiment.build.arithmetic import kernels, replays
from spikeprune.experiment.context import RunContext
from spikeprune.kernels import attach
from spikeprune.kernels.cuda_graphs import GraphedTerms
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.teacher import Teacher
from spikeprune.training.modules.student import DistillationModule
from spikeprune.training.modules.task import TeacherModule
from spikeprune.training.objective import LossWeights
from spikeprune.training.optimizer import Optimization


def teacher_module(context: RunContext, learning: Teacher) -> TeacherModule:
    return TeacherModule(learning, **_common(context, context.stage("teacher")))


def student_module(
    context: RunContext, name: str, learning: SpikingBert, frozen: Teacher, *, stepwise: bool = False
) -> DistillationModule:
    stage = context.stage(name)
    attach(learning, kernels(context.config))
    return DistillationModule(
        learning,
        frozen,
        losses=loss_weights(name, stage),
        layer_map=context.layers,
        forward_mode=context.config.student.forward,
        augment=augment(context),
        stepwise=stepwise,
        **_common(context, stage),
    )


def loss_weights(name: str, stage: Stage) -> LossWeights:
    """Where units are removed the limit of the additions falls to its value as they go, from the multiplications of the
    dense student: firing that is limited at once drowns what the other terms teach."""
    weights = LossWeights(**asdict(stage.losses))
    if name != "spatial" or not weights.additions_limit:
        return weights
    return replace(weights, additions_from=max(1.0, weights.additions_limit), additions_fall=stage.end)


def augment(context: RunContext) -> Augment | None:
    share = context.config.data.replace_words
    return Augment(replace_words=share, words=replaceable(context.tokenizer)) if share else None


def _common(context: RunContext, stage: Stage) -> dict[str, Any]:
    how = Optimization(stage.lr, stage.theta_lr)
    return {
        "task": context.task,
        "dev_splits": context.task.dev_splits,
        "optimization": how,
        "class_weights": None if context.class_weights is None else torch.tensor(context.class_weights),
        "graphs": GraphedTerms if replays(context) else None,
    }


def stage_data(context: RunContext, name: str) -> L.LightningDataModule:
    """The task's sentences, or for general_kd the corpus. Training batches are padded to a multiple of PAD_TO tokens,
    where CUDA graphs replay their steps of PAD_REPLAYED."""
    pad_to = PAD_REPLAYED if replays(context) else PAD_TO
    data, batch_size = context.config.data, context.stage(name).batch_size
    if name != "general_kd":
        mine = copy.copy(context.data)  # the tokens are shared
        mine.batch_size, mine.pad_to = batch_size, pad_to
        return mine
    return distributed.from_rank_zero(
        lambda: CorpusData(
            sources=data.corpus,
            tokenizer=context.tokenizer,
            max_length=data.max_length,
            batch_size=batch_size,
            seed=context.config.seed,
            pad_to=pad_to,
        )
    )
