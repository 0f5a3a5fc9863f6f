"""The cost of a student on real sentences, in the unit of a budget, and the share of each head and neuron in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from spikeprune.cost.dense import dense
from spikeprune.cost.energy_models import EnergyModel
from spikeprune.cost.kinds import Operations
from spikeprune.cost.latency import latency_steps
from spikeprune.cost.network import dense_network
from spikeprune.cost.opponents import equal_bits
from spikeprune.cost.shapes import Shape
from spikeprune.errors import known
from spikeprune.models.inference import infer
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.shape import missing_synapses, student_network, student_operations
from spikeprune.pruning.statistics import given

TARGETS = ("ac", "energy", "equal_bits", "latency")


class CostMeter:
    """Counts a student's operations on `batches`: spikes of `models.inference.infer`, counted as by
    `cost.operations.count`, padding left out.

    `target`: `energy` under `model` in the dense teacher's energy on the same sentences, `equal_bits` in the energy of
    the student computed densely at equal bits (`cost.opponents`), `ac` in the dense teacher's multiply-accumulates,
    `latency` in steps, which no sentence changes.
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
        model: EnergyModel,
        mean: Callable[[Tensor], Tensor] = lambda x: x,
    ):
        known("target", target, TARGETS)
        self.batches, self.target, self.shape, self.model, self.mean = batches, target, shape, model, mean
        self.lengths = torch.cat([batch["attention_mask"].sum(1) for batch in batches])
        self.sentences = len(self.lengths)
        teacher = dense_network(dense(self.lengths, shape=dense_shape), shape=dense_shape)
        self.unit = model.total(teacher) if target == "energy" else teacher.ops.mac.sum()

    def value(self, student: SpikingBert) -> float:
        if self.target == "latency":
            return float(latency_steps(student.steps, student.coding))
        return self.mean(self._total(student, student.heads, student.ffn)).item()

    def savings(self, student: SpikingBert) -> tuple[Tensor, Tensor]:
        """`heads [L, H]`, `ffn [L, F]`: how much lower the cost is without one unit while all other neurons fire as
        before; of a pruned unit, which does not fire, only the part caused by spikes that it receives. Not of latency,
        which has none.

        For fixed spikes counts are linear in each mask, so their gradient is the saving of removing a unit; of a model
        whose memories shrink with it the saving to first order."""
        masks = [mask.double().requires_grad_() for mask in (student.heads.clone(), student.ffn.clone())]
        with torch.enable_grad():
            heads, ffn = torch.autograd.grad(self._total(student, *masks), masks)
        return self.mean(heads), self.mean(ffn)

    def _total(self, student: SpikingBert, heads: Tensor, ffn: Tensor) -> Tensor:
        was_training = student.training
        student.eval()
        total: Operations | None = None
        for batch in self.batches:
            counts = infer(student, **given(batch)).counts
            lengths = batch["attention_mask"].sum(1)
            ops = student_operations(student, counts, lengths, shape=self.shape, heads=heads, ffn=ffn)
            total = ops if total is None else total + ops
        student.train(was_training)
        if self.target == "ac":
            return total.ac.sum() / self.unit
        energy = self.model.total(student_network(student, total, shape=self.shape, heads=heads, ffn=ffn))
        return energy / (self._equal_bits(student, heads, ffn) if self.target == "equal_bits" else self.unit)

    def _equal_bits(self, student: SpikingBert, heads: Tensor, ffn: Tensor) -> Tensor:
        kept = {"heads": heads, "ffn": ffn, "links": missing_synapses(student)}
        form = {"t_steps": student.steps, "bits": student.stored_bits}
        return self.model.total(equal_bits(self.lengths, shape=self.shape, **form, **kept))
