"""The teacher learning the task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from spikeprune import distill
from spikeprune.models.outputs import INPUTS, Outputs
from spikeprune.models.teacher import Teacher
from spikeprune.modules.objective import whole_batch
from spikeprune.modules.task import TaskModule


class TeacherModule(TaskModule):
    """Fine-tunes the teacher on true labels.

    With `adversarial` each batch is learnt a second time with the table of word embeddings moved that far (Euclidean
    length over the whole table) along the loss's gradient, and both losses count alike: adversarial training, Miyato
    et al. 2017 (arXiv 1605.07725), of the table in place of each sentence's own copy of its rows. Of several processes
    each moves it against its own part of a batch.
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
            (slope,) = torch.autograd.grad(terms["hard"], words, retain_graph=True)
            with moved(words, slope * (self.adversarial / slope.norm().clamp(min=torch.finfo(slope.dtype).tiny))):
                terms["adversarial"] = self.hard(batch)
        return {"loss": torch.stack(list(terms.values())).mean(), **terms}

    def hard(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The task's own loss, scalar."""
        logits = self.answer(batch).logits.float()
        loss = distill.hard_loss(logits, batch["labels"], regression=self.task.regression).mean()
        return whole_batch({"hard": loss}, batch)["hard"]


@contextmanager
def moved(weight: nn.Parameter, by: Tensor) -> Iterator[None]:
    """`weight` with `by` added; afterwards exactly what it was. The history of what is computed meanwhile stays valid
    where it does not read the weight, as a table's does not."""
    before = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.add_(by)
        yield
    finally:
        with torch.no_grad():
            weight.copy_(before)
