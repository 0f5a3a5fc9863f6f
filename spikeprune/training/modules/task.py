"""The common base of the LightningModules of teacher and student, with the training step and quality on dev splits; and
the teacher's."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol

import lightning as L
import torch
from torch import Tensor, nn

from spikeprune import distributed
from spikeprune.config.tasks import Task
from spikeprune.models.outputs import Outputs, inputs_of
from spikeprune.models.teacher import Teacher
from spikeprune.training import losses
from spikeprune.training.metrics import main_metric, task_metrics
from spikeprune.training.objective import whole_batch
from spikeprune.training.optimizer import Optimization, adamw


class ReplayedTerms(Protocol):
    """The loss terms of a batch and their gradient, computed in another way, such as `cuda_graphs.GraphedTerms`."""

    def __call__(self, batch: Mapping[str, Tensor], state: Hashable) -> dict[str, Tensor]:
        """As `TaskModule.loss_terms`; `state`: as `TaskModule.python_state`."""

    def backward(self, loss: Tensor) -> None:
        """Write the gradients of the `loss` that the last call returned into the parameters."""


class TaskModule(L.LightningModule):
    """Optimization and quality on each dev split, logged under `val/`, of teacher and student.

    The first split logs `val/accuracy` …; a further one (MNLI's mismatched) `val/<split>/accuracy` …. `val/main` is
    GLUE's number for the first. `graphs(loss_terms, models)`, such as `cuda_graphs.GraphedTerms`, replays `loss_terms`
    and its gradient; None: it is computed as it stands.
    """

    def __init__(
        self,
        *,
        task: Task,
        dev_splits: Sequence[str],
        optimization: Optimization,
        class_weights: Tensor | None = None,
        graphs: Callable[..., ReplayedTerms] | None = None,
    ):
        super().__init__()
        self.task, self.optimization = task, optimization
        self.register_buffer("class_weights", class_weights, persistent=False)  # [C], of the hard loss
        self.graphed = None if graphs is None else graphs(self.loss_terms, self.models)
        self.dev_splits = list(dev_splits)
        self.dev_metrics = nn.ModuleList(task_metrics(task) for _ in self.dev_splits)
        self.predicted: list[Tensor] = []  # of the last validation's batches, on the first dev split
        self.dev_quality: dict[str, float] = {}  # of the last validation, by names without `val/`; logged as float32

    def configure_optimizers(self):
        # not trainer.estimated_stepping_batches: that sets up the loader before a checkpoint is restored, and Lightning
        # then never loads the loader's state, so a resumed run would begin with the first epoch's batches again
        self.total_steps = len(self.trainer.datamodule.train_dataloader()) * self.trainer.max_epochs
        return adamw(self, self.optimization, self.total_steps)

    def infer(self, batch: Mapping[str, Tensor]) -> Outputs:
        """The outputs of a dev batch, by which quality is measured."""
        raise NotImplementedError

    def models(self) -> list[nn.Module]:
        """The networks that `loss_terms` runs."""
        raise NotImplementedError

    def loss_terms(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of a training batch: `loss`, and each of its terms without gradient, all scalar."""
        raise NotImplementedError

    def python_state(self) -> Hashable:
        """The values in Python, not in tensors, that `loss_terms` reads and that may change during a stage."""
        return None

    def augmented(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch as it is trained on."""
        return batch

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        batch = self.augmented(batch)
        terms = self.loss_terms(batch) if self.graphed is None else self.graphed(batch, self.python_state())
        self.terms = {name: term.detach() for name, term in terms.items()}  # see training/callbacks/finite.py
        # between two records nothing reads them, and Lightning takes longer over each than the GPU over a layer
        if (self.global_step + 1) % self.trainer.log_every_n_steps == 0:
            means = distributed.total(torch.stack(list(self.terms.values()))) / distributed.world()
            logged = dict(zip(self.terms, means, strict=True))
            self.log("train/loss", logged.pop("loss"), prog_bar=True)
            self.log_dict({f"train/{name}": term for name, term in logged.items()})
            self.log("train/lr", self.optimizers().param_groups[0]["lr"])  # of the weights
        return terms["loss"]

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        if self.graphed is None:
            super().backward(loss, *args, **kwargs)
        else:
            self.graphed.backward(loss)

    def on_validation_epoch_start(self) -> None:
        self.predicted = []

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> Outputs:
        outputs = self.infer(batch)
        logits = outputs.logits.float()
        predictions = logits[:, 0] if self.task.regression else logits.argmax(-1)
        self.dev_metrics[dataloader_idx].update(predictions, batch["labels"])
        if dataloader_idx == 0:
            self.predicted.append(predictions)
        return outputs

    def on_validation_epoch_end(self) -> None:
        self.dev_quality = {}
        for i, metrics in enumerate(self.dev_metrics):
            results = metrics.compute()
            metrics.reset()
            self.log_quality(i, results)
            if i == 0:
                self.log("val/main", main_metric(self.task, results), prog_bar=True, rank_zero_only=True)

    def log_quality(self, i: int, results: Mapping[str, Tensor | float]) -> None:
        """Log the metrics of the `i`-th dev split."""
        prefix = "" if i == 0 else f"{self.dev_splits[i]}/"
        found = {f"{prefix}{name}": float(value) for name, value in results.items()}
        self.dev_quality |= found
        self.log_dict({f"val/{name}": value for name, value in found.items()}, rank_zero_only=True)


class TeacherModule(TaskModule):
    """Fine-tunes the teacher on true labels."""

    def __init__(self, teacher: Teacher, **common):
        super().__init__(**common)
        self.teacher = teacher

    def infer(self, batch: Mapping[str, Tensor]) -> Outputs:
        return self.teacher(**inputs_of(batch))

    def models(self) -> list[nn.Module]:
        return [self.teacher]

    def loss_terms(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        logits = self.infer(batch).logits.float()
        weights = self.class_weights
        loss = losses.hard_loss(logits, batch["labels"], regression=self.task.regression, weights=weights).mean()
        terms = whole_batch({"hard": loss}, batch)
        return {"loss": terms["hard"], **terms}
