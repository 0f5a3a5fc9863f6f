"""The teacher learning the task."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from spikeprune import distill
from spikeprune.models.outputs import INPUTS, Outputs
from spikeprune.models.teacher import Teacher
from spikeprune.modules.adversarial import added, against, still
from spikeprune.modules.objective import whole_batch
from spikeprune.modules.task import TaskModule


class TeacherModule(TaskModule):
    """Fine-tunes the teacher on true labels.

    With `adversarial` each batch is learnt a second time with each sentence's words moved that far against it, and both
    losses count alike (see `modules/adversarial.py`).
    """

    def __init__(self, teacher: Teacher, *, adversarial: float = 0.0, **common):
        super().__init__(**common)
        self.teacher, self.adversarial = teacher, adversarial

    def answer(self, batch: Mapping[str, Tensor]) -> Outputs:
        return self.teacher(*(batch[name] for name in INPUTS))

    def models(self) -> list[nn.Module]:
        return [self.teacher]

    def learn(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        words, length = self.teacher.bert.get_input_embeddings(), self.adversarial
        unmoved = still(words, batch) if length else None
        with added(words, unmoved):
            terms = {"hard": self.hard(batch)}
        if length:
            with added(words, against(terms["hard"], unmoved, batch, length)):
                terms["adversarial"] = self.hard(batch)
        return {"loss": torch.stack(list(terms.values())).mean(), **terms}

    def hard(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The task's own loss, scalar."""
        logits = self.answer(batch).logits.float()
        loss = distill.hard_loss(logits, batch["labels"], regression=self.task.regression).mean()
        return whole_batch({"hard": loss}, batch)["hard"]
