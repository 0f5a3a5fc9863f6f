"""The cost of a student on real sentences, in the unit of a budget, and the share of each head and neuron in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spikeprune.cost.energy import Prices, latency_steps
from spikeprune.cost.operations import Operations, dense
from spikeprune.cost.shapes import Shape
from spikeprune.errors import known
from spikeprune.models.inference import infer
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.shape import student_operations
from spikeprune.pruning.statistics import given

TARGETS = ("ac", "energy", "latency")


@dataclass(frozen=True)
class CostReading:
    """`value`: the student's cost. `heads [L, H]`, `ffn [L, F]`: how much lower it is without one unit while all other
    neurons fire as before; of a pruned unit, which does not fire, only the part caused by spikes that it receives."""

    value: float
    heads: Tensor
    ffn: Tensor


class CostMeter:
    """Counts a student's operations on `batches`: spikes of `models.inference.infer`, counted as by
    `cost.operations.count`, padding left out.

    `target`: `energy` in the dense teacher's energy on the same sentences (without element-wise work, as `energy_pj`),
    `ac` in the dense teacher's multiply-accumulates, `latency` in steps, which no sentence changes.
    `dense_shape` is the teacher's. `mean` is over processes, which read the same sentences and must decide the same. A
    student in another coding, or quantized, is measured as it is.
    """

    def __init__(
        self,
        batches: Sequence[dict[str, Tensor]],
        *,
        target: str,
        shape: Shape,
        dense_shape: Shape,
        prices: Prices,
        mean: Callable[[Tensor], Tensor] = lambda x: x,
    ):
        known("target", target, TARGETS)
        self.batches, self.target, self.shape, self.prices, self.mean = batches, target, shape, prices, mean
        lengths = torch.cat([batch["attention_mask"].sum(1) for batch in batches])
        self.sentences = len(lengths)
        macs = dense(lengths, shape=dense_shape).mac.sum()
        self.unit = macs * (prices.mac if target == "energy" else 1.0)

    def value(self, student: SpikingBert) -> float:
        if self.target == "latency":
            return float(latency_steps(student.steps, student.coding))
        return self.mean(self._total(student, student.heads, student.ffn)).item()

    def read(self, student: SpikingBert) -> CostReading:
        """The count is linear in each mask for fixed spikes, so its gradient is the saving of removing a unit."""
        if self.target == "latency":
            return CostReading(self.value(student), torch.zeros_like(student.heads), torch.zeros_like(student.ffn))
        masks = [mask.double().requires_grad_() for mask in (student.heads.clone(), student.ffn.clone())]
        with torch.enable_grad():
            total = self._total(student, *masks)
            heads, ffn = torch.autograd.grad(total, masks)
        return CostReading(self.mean(total.detach()).item(), self.mean(heads), self.mean(ffn))

    def _total(self, student: SpikingBert, heads: Tensor, ffn: Tensor) -> Tensor:
        was_training = student.training
        student.eval()
        total: Tensor | float = 0.0
        for batch in self.batches:
            counts = infer(student, **given(batch)).counts
            lengths = batch["attention_mask"].sum(1)
            ops = student_operations(student, counts, lengths, shape=self.shape, heads=heads, ffn=ffn)
            total = total + self._weighted(ops)
        student.train(was_training)
        return total / self.unit

    def _weighted(self, ops: Operations) -> Tensor:
        if self.target == "ac":
            return ops.ac.sum()
        return self.prices.ac * ops.ac.sum() + self.prices.mac * ops.mac.sum()
