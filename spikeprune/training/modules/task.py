"""What teacher and student share as LightningModules: the training step, and quality on dev splits. Plain values in."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol

import lightning as L
import torch
from torch import Tensor, nn

from spikeprune.config.tasks import Task
from spikeprune.models.outputs import Outputs
from spikeprune.training import distributed
from spikeprune.training.metrics import main_metric, task_metrics
from spikeprune.training.optimizer import Optimization, adamw


class ReplayedTerms(Protocol):
    """The loss terms of a batch and their gradient, computed in another way, such as `cuda_graphs.GraphedTerms`."""

    def __call__(self, batch: Mapping[str, Tensor], state: Hashable) -> dict[str, Tensor]:
        """As `TaskModule.learn`; `state`: as `TaskModule.learn_state`."""

    def backward(self, loss: Tensor) -> None:
        """Give the parameters the gradients of the `loss` that the last call returned."""


class TaskModule(L.LightningModule):
    """What teacher and student share: optimization, and quality on each dev split under `val/`.

    The first split logs `val/accuracy` …; a further one (MNLI's mismatched) `val/<split>/accuracy` …. `val/main` is
    GLUE's number for the first. `graphs(learn, models)` makes what computes `learn` in its place; None: `learn` itself.
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
        self.graphed = None if graphs is None else graphs(self.learn, self.models)
        self.dev_splits = list(dev_splits)
        self.dev_metrics = nn.ModuleList(task_metrics(task) for _ in self.dev_splits)
        self.found: dict[str, float] = {}  # of the last validation, without `val/`; what Lightning logs is float32

    def configure_optimizers(self):
        # not trainer.estimated_stepping_batches: that sets up the loader before a checkpoint is restored, and Lightning
        # then never loads the loader's state, so a resumed run would begin with the first epoch's batches again
        self.total_steps = len(self.trainer.datamodule.train_dataloader()) * self.trainer.max_epochs
        return adamw(self, self.optimization, self.total_steps)

    def infer(self, batch: Mapping[str, Tensor]) -> Outputs:
        """The outputs that quality is judged by."""
        raise NotImplementedError

    def models(self) -> list[nn.Module]:
        """Those that `learn` runs."""
        raise NotImplementedError

    def learn(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What a training batch teaches: `loss`, and each of its terms without gradient, all scalar."""
        raise NotImplementedError

    def learn_state(self) -> Hashable:
        """What `learn` reads from Python and may change in the course of a stage."""
        return None

    def varied(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch as it is learnt from."""
        return batch

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        batch = self.varied(batch)
        terms = self.learn(batch) if self.graphed is None else self.graphed(batch, self.learn_state())
        self.terms = {
            name: term.detach() for name, term in terms.items()
        }  # of this step; see training/callbacks/finite.py
        # between two records nothing reads them, and Lightning takes longer over each than the GPU over a layer
        if (self.global_step + 1) % self.trainer.log_every_n_steps == 0:
            logged = self.over_ranks(self.terms)
            self.log("train/loss", logged.pop("loss"), prog_bar=True)
            self.log_dict({f"train/{name}": term for name, term in logged.items()})
            self.log("train/lr", self.optimizers().param_groups[0]["lr"])  # of the weights
        return terms["loss"]

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        if self.graphed is None:
            super().backward(loss, *args, **kwargs)
        else:
            self.graphed.backward(loss)

    def over_ranks(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Their means over the processes."""
        return dict(
            zip(values, distributed.total(torch.stack(list(values.values()))) / distributed.world(), strict=True)
        )

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> Outputs:
        outputs = self.infer(batch)
        logits = outputs.logits.float()
        predictions = logits[:, 0] if self.task.regression else logits.argmax(-1)
        self.dev_metrics[dataloader_idx].update(predictions, batch["labels"])
        return outputs

    def on_validation_epoch_end(self) -> None:
        self.found = {}
        for i, metrics in enumerate(self.dev_metrics):
            results = metrics.compute()
            metrics.reset()
            self.log_quality(i, results)
            if i == 0:
                self.log("val/main", main_metric(self.task, results), prog_bar=True, rank_zero_only=True)

    def log_quality(self, i: int, results: Mapping[str, Tensor | float]) -> None:
        """What was found on the `i`-th dev split."""
        prefix = "" if i == 0 else f"{self.dev_splits[i]}/"
        found = {f"{prefix}{name}": float(value) for name, value in results.items()}
        self.found |= found
        self.log_dict({f"val/{name}": value for name, value in found.items()}, rank_zero_only=True)
