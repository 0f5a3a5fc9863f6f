"""What a student costs on real sentences, in the unit of a budget, and what each head and neuron has a part in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spikeprune.cost.energy import Prices, latency_steps
from spikeprune.cost.operations import Operations, count, dense
from spikeprune.cost.shapes import Shape
from spikeprune.errors import known
from spikeprune.models.inference import infer
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.outputs import INPUTS

TARGETS = ("ac", "energy", "latency")


@dataclass(frozen=True)
class CostReading:
    """`value`: the student's cost. `heads [L, H]`, `ffn [L, F]`: how much of it leaves with one unit when every other
    site keeps firing as it does; of a pruned unit only the part that others pay for it (it does not fire)."""

    value: float
    heads: Tensor
    ffn: Tensor


class CostMeter:
    """A student's spikes on `batches`, as `models.inference` gives them and counted as by `operations.count`, padding
    left out.

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
        """The count is linear in each mask while spikes are held, so its gradient is what a unit's leaving saves."""
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
            counts = infer(student, *(batch[name] for name in INPUTS)).counts
            kept = {"heads": heads, "ffn": ffn, "t_steps": student.steps, "links": student.links()}
            lengths = batch["attention_mask"].sum(1)
            total = total + self._price(count(counts, lengths, shape=self.shape, coding=student.coding, **kept))
        student.train(was_training)
        return total / self.unit

    def _price(self, ops: Operations) -> Tensor:
        if self.target == "ac":
            return ops.ac.sum()
        return self.prices.ac * ops.ac.sum() + self.prices.mac * ops.mac.sum()
