"""The loss of a student's stage: the weighted sum of its terms, each a function of `training/losses.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spikeprune.cost.shapes import Shape
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.outputs import INPUTS, Outputs
from spikeprune.models.teacher import Teacher
from spikeprune.training import losses
from spikeprune.training.additions import AdditionsTerm

# The column of a batch's `share` that each loss term is a mean over (see `data.batching.shares`).
MEAN_OVER = {"hard": 0, "soft": 0, "hidden": 1, "additions": 1, "scores": 2}


def whole_batch(terms: dict[str, Tensor], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The terms of one process' part of a batch, weighted so that their mean over the processes (DDP averages the
    gradients) is the term of the whole batch; a batch that is not shared has its terms as they are. Exact but for
    `additions` near their limit, with which each process compares its own part."""
    if "share" not in batch:
        return terms
    return {name: term * batch["share"][MEAN_OVER[name]].to(term.dtype) for name, term in terms.items()}


def mean_tokens(batch: Mapping[str, Tensor]) -> Tensor:
    """Real tokens of a sentence, mean over the whole batch, scalar; all processes' parts of it together."""
    mean = batch["attention_mask"].bool().sum(1).float().mean()
    return batch["share"][3].to(mean.dtype) if "share" in batch else mean


@dataclass(frozen=True)
class LossWeights:
    """See `schema.Losses`; zero leaves a term out."""

    hidden: float = 0.0
    scores: float = 0.0
    soft: float = 0.0
    hard: float = 0.0
    additions: float = 0.0
    additions_limit: float | None = None
    additions_from: float = 0.0
    additions_fall: float = 0.5
    temperature: float = 2.0


class Objective(nn.Module):
    """The loss of a training batch, term by term. It has no parameters and no state in a checkpoint."""

    def __init__(
        self,
        weights: LossWeights,
        *,
        layer_map: Sequence[int],
        shape: Shape,
        regression: bool,
        class_weights: Tensor | None = None,
    ):
        super().__init__()
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.weights, self.layer_map, self.regression = weights, list(layer_map), regression
        begin, end = weights.additions_from, weights.additions_limit or 0.0
        self.additions = AdditionsTerm(shape, begin=begin, end=end, fall=weights.additions_fall)

    @property
    def reads_rates(self) -> bool:
        """Whether a term needs the firing rates, `Outputs.rates`."""
        return bool(self.weights.additions)

    @property
    def reads_scores(self) -> bool:
        """Whether a term needs the attention scores; without them attention is fused."""
        return bool(self.weights.scores)

    @torch.no_grad()
    def teacher_outputs(self, batch: Mapping[str, Tensor], teacher: Teacher) -> Outputs | None:
        """The teacher's outputs, where a term needs them."""
        hidden, scores = bool(self.weights.hidden), self.reads_scores
        if not (hidden or scores or self.weights.soft):
            return None
        return teacher(*(batch[name] for name in INPUTS), hidden=hidden, scores=scores)

    def forward(
        self, batch: Mapping[str, Tensor], outputs: Outputs, student: SpikingBert, teacher_outputs: Outputs | None
    ) -> dict[str, Tensor]:
        """Each term that has a weight, without it, scalar. `outputs`: the student's of this batch;
        `teacher_outputs`: as above."""
        weights, tokens = self.weights, batch["attention_mask"].bool()
        terms: dict[str, Tensor] = {}
        if weights.soft:
            terms["soft"] = self.soft(outputs, teacher_outputs).mean()
        if weights.hard:
            terms["hard"] = self.hard(batch, outputs).mean()
        if weights.hidden:
            terms["hidden"] = losses.hidden_loss(outputs.hidden, teacher_outputs.hidden, tokens, self.layer_map)
        if weights.scores:
            scores = outputs.scores, teacher_outputs.scores
            terms["scores"] = losses.scores_loss(*scores, tokens, self.layer_map, heads=student.heads)
        if weights.additions:
            terms["additions"] = self.additions(student, outputs, mean_tokens(batch))
        return whole_batch(terms, batch)

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The loss, scalar."""
        return sum(getattr(self.weights, name) * term for name, term in terms.items())

    def soft(self, outputs: Outputs, teacher_outputs: Outputs) -> Tensor:
        """`[B]`: the distance of the student's outputs from the teacher's."""
        logits, targets = outputs.logits.float(), teacher_outputs.logits.float()
        return losses.soft_loss(logits, targets, temperature=self.weights.temperature, regression=self.regression)

    def hard(self, batch: Mapping[str, Tensor], outputs: Outputs) -> Tensor:
        """`[B]`: the distance from the true labels."""
        logits, weights = outputs.logits.float(), self.class_weights
        return losses.hard_loss(logits, batch["labels"], regression=self.regression, weights=weights)
