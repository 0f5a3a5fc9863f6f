"""A budget: the cost of a student on real sentences in its unit, the share of each head and neuron in it, and sentences
about the lowest reachable cost and how near to its goal a stage ended."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor

from spikeprune.cost.dense import dense
from spikeprune.cost.energy_models import ENERGY_MODELS, EnergyModel
from spikeprune.cost.kinds import Operations
from spikeprune.cost.network import dense_network
from spikeprune.cost.opponents import equal_bits
from spikeprune.cost.shapes import Shape
from spikeprune.cost.summary import latency_steps
from spikeprune.errors import check_share, known
from spikeprune.models.inference import infer
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.outputs import inputs_of
from spikeprune.models.shape import (
    dense_shape,
    missing_synapses,
    student_network,
    student_operations,
    student_shape,
)
from spikeprune.pruning.statistics import Mean, alone

TOLERANCE = 0.02  # of the goal: a cost that is closer below it counts as reached
EQUAL_BITS = "the same network's, computed densely at equal bits,"
TARGETS = ("ac", "energy", "equal_bits", "latency")


def measured_operations(
    student: SpikingBert, batches: Sequence[dict[str, Tensor]], *, shape: Shape, heads: Tensor, ffn: Tensor
) -> Operations:
    """On all sentences of the batches, with these masks in place of the student's where its operations are counted."""

    def of(batch: dict[str, Tensor]) -> Operations:
        counts, lengths = infer(student, **inputs_of(batch)).counts, batch["attention_mask"].sum(1)
        return student_operations(student, counts, lengths, shape=shape, heads=heads, ffn=ffn)

    return reduce(add, map(of, batches))


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
        mean: Mean = alone,
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
        total = measured_operations(student, self.batches, shape=self.shape, heads=heads, ffn=ffn)
        if self.target == "ac":
            return total.ac.sum() / self.unit
        energy = self.model.total(student_network(student, total, shape=self.shape, heads=heads, ffn=ffn))
        return energy / (self._equal_bits(student, heads, ffn) if self.target == "equal_bits" else self.unit)

    def _equal_bits(self, student: SpikingBert, heads: Tensor, ffn: Tensor) -> Tensor:
        network = equal_bits(
            self.lengths,
            shape=self.shape,
            heads=heads,
            ffn=ffn,
            t_steps=student.steps,
            bits=student.stored_bits,
            links=missing_synapses(student),
        )
        return self.model.total(network)


# ------------------------------------------------------------------------------------------------- the budget itself


@dataclass
class Budget:
    """The cost that a student may have: a share of a reference's.

    target       one of TARGETS
    share        of the reference's cost
    relative_to  dense (the dense teacher) or student (the uncompressed one); None: dense, of latency, which a dense
                 network has none of, student
    model        of energy: one of `cost.energy_models.ENERGY_MODELS`
    dense_shape  of the teacher; None: of the dense BERT of the student's sizes
    reference    the uncompressed student's cost, in the meter's unit

    Raises ValueError for an unknown name, what is no share above 0, and latency relative to the dense teacher.
    """

    target: str
    share: float
    relative_to: str | None = None
    model: str = "convention"
    dense_shape: Shape | None = None
    reference: float | None = None

    def __post_init__(self):
        known("target", self.target, TARGETS)
        known("model", self.model, ENERGY_MODELS)
        if self.relative_to is None:
            self.relative_to = "student" if self.target == "latency" else "dense"
        known("relative_to", self.relative_to, ("dense", "student"))
        check_share("share", self.share)
        if not self.share:
            raise ValueError("share = 0: must be above 0, since every student costs something")
        if self.target == "latency" and self.relative_to == "dense":
            raise ValueError("latency is a share of the student's own time steps; leave relative_to out")

    @property
    def unit(self) -> float:
        """The reference's cost, in the meter's unit."""
        return self.reference if self.relative_to == "student" else 1.0

    @property
    def goal(self) -> float:
        """The cost to end with, in the meter's unit; latency is whole steps, so the next below."""
        goal = self.share * self.unit
        return float(max(1, math.floor(goal + 1e-9))) if self.target == "latency" else goal

    def meter(self, student: SpikingBert, batches: Sequence[dict[str, Tensor]], mean: Mean = alone) -> CostMeter:
        return CostMeter(
            batches,
            target=self.target,
            shape=student_shape(student),
            dense_shape=self.dense_shape or dense_shape(student),
            model=ENERGY_MODELS[self.model],
            mean=mean,
        )

    def in_words(self, value: float) -> str:
        """A cost as a share of the reference's, rounded up, so that it can be reached: `0.0213 of the dense teacher's
        energy`, for latency with the steps."""
        share = math.ceil(value / self.unit * 1e4) / 1e4
        whose = "the dense teacher's" if self.relative_to == "dense" else "the uncompressed student's"
        what = {"ac": "additions", "energy": "energy", "latency": f"latency ({value:.0f} steps)"}
        if self.target == "equal_bits":
            return f"{share:.4g} of {'' if self.relative_to == 'dense' else whose + ' share of '}{EQUAL_BITS} energy"
        if self.target == "ac" and self.relative_to == "dense":
            return f"{share:.4g} of the dense teacher's multiplications, in additions"
        return f"{share:.4g} of {whose} {what[self.target]}"

    def shortfall(self, value: float, reported: float, *, start: float | None, sentences: int) -> str:
        """Why the cost of a finished stage is not within TOLERANCE of its goal; empty if it is. `value`: as the budget
        measured it on `sentences` training sentences; `reported`: on those that are scored; `start`: before the first
        decision."""
        off = value / self.goal - 1
        if off > 0:
            return "nothing is left that the floors allow to remove"
        if -off > TOLERANCE and start is not None and start <= self.goal:
            return "the stage began below the target"
        if -off > TOLERANCE:
            return "firing rates fell after the last decision, or the next unit to return would exceed the target"
        if abs(reported / self.goal - 1) > TOLERANCE:
            return f"the budget was measured on {sentences} training sentences, the report on those that are scored"
        return ""

    def record(
        self, value: float, reported: float, *, start: float | None, drift: float, sentences: int
    ) -> dict[str, Any]:
        """Of a finished stage, costs as shares of `unit`; arguments as of `shortfall`."""
        return {
            "target": self.target,
            "of": self.relative_to,
            "share": self.share,
            "goal": self.goal / self.unit,
            "reached": value / self.unit,
            "reported": reported / self.unit,
            "drift": drift,
            "within": abs(reported / self.goal - 1) <= TOLERANCE,
            "why_not": self.shortfall(value, reported, start=start, sentences=sentences),
        }


def cost_in_unit(budget: Budget, measured: Mapping[str, Any], teacher: Mapping[str, Any]) -> float:
    """A measured student in the unit of `CostMeter`, given its dense teacher as measured."""
    if budget.target == "latency":
        return float(measured["cost"]["latency_steps"])
    if budget.target == "ac":
        return measured["cost"]["ac"] / teacher["cost"]["mac"]
    energies = measured["energy"][budget.model]
    return energies["student"] / energies["equal_bits" if budget.target == "equal_bits" else "teacher"]
