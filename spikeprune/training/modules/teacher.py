"""TeacherModule: the teacher fine-tuned on the task."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from spikeprune.models.outputs import INPUTS, Outputs
from spikeprune.models.teacher import Teacher
from spikeprune.training import losses
from spikeprune.training.modules.task import TaskModule
from spikeprune.training.objective import whole_batch


class TeacherModule(TaskModule):
    """Fine-tunes the teacher on true labels."""

    def __init__(self, teacher: Teacher, **common):
        super().__init__(**common)
        self.teacher = teacher

    def infer(self, batch: Mapping[str, Tensor]) -> Outputs:
        return self.teacher(*(batch[name] for name in INPUTS))

    def models(self) -> list[nn.Module]:
        return [self.teacher]

    def loss_terms(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        logits = self.infer(batch).logits.float()
        weights = self.class_weights
        loss = losses.hard_loss(logits, batch["labels"], regression=self.task.regression, weights=weights).mean()
        terms = whole_batch({"hard": loss}, batch)
        return {"loss": terms["hard"], **terms}
