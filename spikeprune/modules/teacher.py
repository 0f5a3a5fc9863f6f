"""The teacher learning the task."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from spikeprune import distill
from spikeprune.models.outputs import INPUTS, Outputs
from spikeprune.models.teacher import Teacher
from spikeprune.modules.objective import whole_batch
from spikeprune.modules.task import TaskModule


class TeacherModule(TaskModule):
    """Fine-tunes the teacher on true labels."""

    def __init__(self, teacher: Teacher, **common):
        super().__init__(**common)
        self.teacher = teacher

    def answer(self, batch: Mapping[str, Tensor]) -> Outputs:
        return self.teacher(*(batch[name] for name in INPUTS))

    def models(self) -> list[nn.Module]:
        return [self.teacher]

    def learn(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        logits = self.answer(batch).logits.float()
        loss = distill.hard_loss(logits, batch["labels"], regression=self.task.regression).mean()
        terms = whole_batch({"hard": loss}, batch)
        return {"loss": terms["hard"], **terms}
