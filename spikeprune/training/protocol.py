"""The members of a LightningModule that pruning callbacks use, and functions that read them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import lightning as L
import torch
from torch import Tensor, nn

from spikeprune.errors import InputError
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.outputs import Outputs, inputs_of
from spikeprune.models.shape import spiking_bert
from spikeprune.pruning.statistics import trained_mode

Batch = dict[str, Tensor]


@runtime_checkable
class PrunableModule(Protocol):
    """A LightningModule whose student the callbacks of `training/callbacks` compress.

    Its training batches are mappings with `input_ids` and `attention_mask [B, N]`, and `token_type_ids` where texts are
    pairs. Decisions are made on the first ones of `trainer.train_dataloader`, or on those that the datamodule's
    `fixed_batches(batches, batch_size, seed)` returns, where it has this method.

    Optional members, each used where it exists:

        forward_mode                      "equilibrium" or "spiking": the student's forward in training
        decision_batch(batch)             the batch with training's augmentation
        gates                             `BudgetPruning`'s, None before: see `training.gates.Gates`
    """

    student: nn.Module  # a SpikingBert, or a module that contains exactly one

    def sample_loss(self, batch: Batch, outputs: Outputs) -> Tensor:
        """`[B]`: the prediction loss of each sample, differentiable with respect to `outputs`, the student's."""
        ...


def require_prunable(callback: L.Callback, module: L.LightningModule) -> None:
    """Raises InputError, in one sentence, for a module without the members of `PrunableModule`."""
    if missing := [name for name in ("student", "sample_loss") if not hasattr(module, name)]:
        raise InputError(
            f"{type(callback).__name__} cannot prune {type(module).__name__}: it has no {' and no '.join(missing)}; "
            "give it `student` (a SpikingBert, or a module that contains one) and `sample_loss(batch, outputs)` (the "
            "loss of each sample, [B])"
        )
    student_of(module)


def student_of(module: PrunableModule) -> SpikingBert:
    student = module.student
    return spiking_bert(student) if isinstance(student, nn.Module) else student


def forward_mode(module: PrunableModule) -> str:
    return getattr(module, "forward_mode", None) or trained_mode(student_of(module))


def decision_batches(
    trainer: L.Trainer, module: PrunableModule, *, batches: int, batch_size: int, seed: int
) -> list[Batch]:
    """Training batches on the module's device; the same at each decision of a datamodule with `fixed_batches`."""
    data = getattr(trainer, "datamodule", None)
    if hasattr(data, "fixed_batches"):
        return on_device(data.fixed_batches(batches, batch_size, seed), module)
    with torch.random.fork_rng(devices=[]):  # a decision must not change the order of training
        torch.manual_seed(seed)
        return on_device(list(islice(trainer.train_dataloader, batches)), module)


def cost_batches(
    trainer: L.Trainer, module: PrunableModule, *, sentences: int, batch_size: int, seed: int
) -> list[Batch]:
    """About `sentences` training samples that costs are measured on."""
    data = getattr(trainer, "datamodule", None)
    if hasattr(data, "sample_batches"):
        return on_device(data.sample_batches(sentences, batch_size, seed), module)
    return decision_batches(trainer, module, batches=-(-sentences // batch_size), batch_size=batch_size, seed=seed)


def on_device(batches: list[Mapping[str, Any]], module: L.LightningModule) -> list[Batch]:
    """The tensors of each batch. Raises InputError as `inputs_of`."""
    for batch in batches:
        inputs_of(batch)
    return [{name: x.to(module.device) for name, x in batch.items() if isinstance(x, Tensor)} for batch in batches]


def with_augmentation(batches: list[Batch], module: PrunableModule) -> list[Batch]:
    """The batches with training's augmentation, where the module has one for decisions."""
    augmented = getattr(module, "decision_batch", None)
    return batches if augmented is None else [augmented(batch) for batch in batches]
