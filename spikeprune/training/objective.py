"""The loss of a student's stage: the weighted sum of its terms, each a function of `training/losses.py`, or of firing
rates.

To add a term: write its function, add one entry to TERMS, and a weight of its name to `config.schema.Losses`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from spikeprune.config.schema import Losses
from spikeprune.cost import synapses
from spikeprune.cost.activity import place
from spikeprune.cost.shapes import Shape
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.outputs import Outputs, inputs_of
from spikeprune.models.teacher import Teacher
from spikeprune.training import losses

SENTENCES, TOKENS, PAIRS = range(3)  # columns of a batch's `share` (see `data.batching.shares`): what a term averages


def whole_batch(terms: dict[str, Tensor], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The terms of one process' part of a batch, weighted so that their mean over the processes (DDP averages the
    gradients) is the term of the whole batch; a batch that is not shared has its terms as they are. Exact but for
    `additions` near their limit, with which each process compares its own part."""
    if "share" not in batch:
        return terms
    return {name: term * batch["share"][TERMS[name].mean_over].to(term.dtype) for name, term in terms.items()}


def mean_tokens(batch: Mapping[str, Tensor]) -> Tensor:
    """Real tokens of a sentence, mean over the whole batch, scalar; all processes' parts of it together."""
    mean = batch["attention_mask"].bool().sum(1).float().mean()
    return batch["share"][3].to(mean.dtype) if "share" in batch else mean


class AdditionsTerm(nn.Module):
    """A token's expected additions, in multiplications of its dense forward, as far as they are above `limit`.

    The limit is a tensor, so that a replayed CUDA graph reads its new value; it is in no checkpoint. It falls from
    `begin` to `end` over the share `fall` of all steps, or is `end` throughout where `begin` is 0.
    """

    def __init__(self, shape: Shape, *, begin: float = 0.0, end: float = 0.0, fall: float = 1.0):
        super().__init__()
        self.shape, self.begin, self.end, self.share = shape, begin, end, fall
        self.register_buffer("limit", torch.tensor(end), persistent=False)

    def forward(self, student: SpikingBert, outputs: Outputs, tokens: Tensor) -> Tensor:
        """Scalar; `tokens`: mean of a sentence."""
        return self.expected(student, outputs, tokens, self.limit)

    def expected(
        self,
        student: SpikingBert,
        outputs: Outputs,
        tokens: Tensor,
        limit: Tensor | float = 0.0,
        *,
        heads: Tensor | None = None,
        ffn: Tensor | None = None,
        t_steps: Tensor | None = None,
    ) -> Tensor:
        """Scalar: a token's additions over the multiplications of its dense forward, as far as above `limit`. `heads
        [L, H]`, `ffn [L, F]` and `t_steps [L+1]`: expected ones in place of the student's."""
        shape = self.shape
        heads, ffn = student.heads if heads is None else heads, student.ffn if ffn is None else ffn
        fan_out = synapses.fan_out(shape=shape, heads=heads, ffn=ffn, tokens=tokens, links=student.links())
        numbers = student.steps if t_steps is None else t_steps
        unfired = sum(synapses.unfired(shape=shape, t_steps=numbers, coding=student.coding))
        steps = student.t_steps if t_steps is None else t_steps
        names = [name for name in outputs.rates if name in fan_out]  # a spiking query gates additions, it sends none
        # one product over all layers: as many small ones take a GPU longer than the layers themselves
        rates = torch.cat([outputs.rates[name] for name in names])
        costs = torch.cat([widened(fan_out[name], outputs.rates[name]) for name in names])
        times = torch.cat([steps[place(name)[0] + 1].expand_as(outputs.rates[name]) for name in names])
        additions = rates.dot((costs * times).to(rates.dtype)) + unfired
        return (additions / shape.layer_products - limit).relu()

    def fall(self, progress: float) -> None:
        """Set the limit for this share of all steps, where it falls at all."""
        if self.begin:
            self.limit.fill_(losses.falling(progress / self.share, begin=self.begin, end=self.end))

    @torch.no_grad()
    def mean(self, student: SpikingBert, batches: Sequence[Mapping[str, Tensor]], mode: str) -> Tensor:
        """The mean of the term over `batches`, without limit, scalar; `mode`: of the student's forward."""
        terms = []
        for batch in batches:
            outputs = student(**inputs_of(batch), mode=mode, rate=True)
            terms.append(self.expected(student, outputs, batch["attention_mask"].sum(1).float().mean()))
        return torch.stack(terms).mean()


def widened(cost: Tensor, rate: Tensor) -> Tensor:
    """A number for each channel of `rate [D]`; of several, a compacted student's come first."""
    return cost[: len(rate)] if cost.dim() else cost.expand_as(rate)


@dataclass
class LossWeights(Losses):
    """Those of a stage, and how the limit of `additions` falls (see `AdditionsTerm`)."""

    additions_from: float = 0.0
    additions_fall: float = 0.5


class Computed(NamedTuple):
    """What the networks have computed of one batch, for the terms."""

    batch: Mapping[str, Tensor]
    outputs: Outputs  # the student's
    student: SpikingBert
    teacher_outputs: Outputs | None  # None where no term reads them


class Objective(nn.Module):
    """The loss of a training batch, term by term. It has no parameters and no state in a checkpoint. `reads`: what its
    terms read together, as `Term.reads`."""

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
        self.terms = {name: term for name, term in TERMS.items() if getattr(weights, name)}
        self.reads = {part for term in self.terms.values() for part in term.reads}
        begin, end = weights.additions_from, weights.additions_limit or 0.0
        self.additions = AdditionsTerm(shape, begin=begin, end=end, fall=weights.additions_fall)

    @torch.no_grad()
    def teacher_outputs(self, batch: Mapping[str, Tensor], teacher: Teacher) -> Outputs | None:
        """The teacher's outputs, where a term reads them."""
        if "teacher" not in self.reads:
            return None
        return teacher(**inputs_of(batch), hidden="hidden" in self.reads, scores="scores" in self.reads)

    def forward(
        self, batch: Mapping[str, Tensor], outputs: Outputs, student: SpikingBert, teacher_outputs: Outputs | None
    ) -> dict[str, Tensor]:
        """Each term that has a weight, without it, scalar. `outputs`: the student's of this batch;
        `teacher_outputs`: as above."""
        computed = Computed(batch, outputs, student, teacher_outputs)
        return whole_batch({name: term.loss(self, computed) for name, term in self.terms.items()}, batch)

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


def soft(objective: Objective, x: Computed) -> Tensor:
    return objective.soft(x.outputs, x.teacher_outputs).mean()


def hard(objective: Objective, x: Computed) -> Tensor:
    return objective.hard(x.batch, x.outputs).mean()


def hidden(objective: Objective, x: Computed) -> Tensor:
    tokens = x.batch["attention_mask"].bool()
    return losses.hidden_loss(x.outputs.hidden, x.teacher_outputs.hidden, tokens, objective.layer_map)


def scores(objective: Objective, x: Computed) -> Tensor:
    own, targets, tokens = x.outputs.scores, x.teacher_outputs.scores, x.batch["attention_mask"].bool()
    return losses.scores_loss(own, targets, tokens, objective.layer_map, heads=x.student.heads)


def additions(objective: Objective, x: Computed) -> Tensor:
    return objective.additions(x.student, x.outputs, mean_tokens(x.batch))


class Term(NamedTuple):
    """A term of the loss: a scalar of what was computed of a batch."""

    loss: Callable[[Objective, Computed], Tensor]
    mean_over: int  # SENTENCES, TOKENS or PAIRS, so that several processes weigh their parts right
    reads: tuple[str, ...] = ()  # teacher; hidden and scores, of both networks; rates, of the student


TERMS: dict[str, Term] = {
    "soft": Term(soft, SENTENCES, reads=("teacher",)),
    "hard": Term(hard, SENTENCES),
    "hidden": Term(hidden, TOKENS, reads=("teacher", "hidden")),
    "scores": Term(scores, PAIRS, reads=("teacher", "scores")),
    "additions": Term(additions, TOKENS, reads=("rates",)),
}
