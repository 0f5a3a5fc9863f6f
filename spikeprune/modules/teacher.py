"""The teacher learning the task."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from spikeprune import distill
from spikeprune.models.outputs import INPUTS, Outputs
from spikeprune.models.teacher import Teacher
from spikeprune.modules.adversarial import moved_against
from spikeprune.modules.objective import whole_batch
from spikeprune.modules.task import TaskModule


class TeacherModule(TaskModule):
    """Fine-tunes the teacher on true labels.

    With `adversarial` each batch is learnt a second time with the word embeddings moved that far against it, and both
    losses count alike (see `modules/adversarial.py`). Of several processes each moves them against its own part of a
    batch.
    """

    def __init__(self, teacher: Teacher, *, adversarial: float = 0.0, **common):
        super().__init__(**common)
        self.teacher, self.adversarial = teacher, adversarial

    def answer(self, batch: Mapping[str, Tensor]) -> Outputs:
        return self.teacher(*(batch[name] for name in INPUTS))

    def models(self) -> list[nn.Module]:
        return [self.teacher]

    def learn(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        terms = {"hard": self.hard(batch)}
        if self.adversarial:
            words = self.teacher.bert.get_input_embeddings().weight
            with moved_against(words, terms["hard"], self.adversarial):
                terms["adversarial"] = self.hard(batch)
        return {"loss": torch.stack(list(terms.values())).mean(), **terms}

    def hard(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The task's own loss, scalar."""
        logits = self.answer(batch).logits.float()
        loss = distill.hard_loss(logits, batch["labels"], regression=self.task.regression).mean()
        return whole_batch({"hard": loss}, batch)["hard"]
