"""CostLogger: operations, energy, opponents, firing rates and latency on the dev split, at each validation."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor

from spikeprune import distributed
from spikeprune.cost.activity import Activity, activity
from spikeprune.cost.dense import dense
from spikeprune.cost.energy_models import ENERGY_MODELS
from spikeprune.cost.kinds import Operations
from spikeprune.cost.opponents import comparison, opponents, silent
from spikeprune.cost.shapes import Shape
from spikeprune.cost.summary import summarize
from spikeprune.models.shape import missing_synapses, sends_spikes, student_network, student_operations, student_shape
from spikeprune.training.protocol import student_of


class CostLogger(L.Callback):
    """Logs `cost/ac`, `cost/mac`, `cost/elementwise`, `cost/energy_pj` …, `cost/rate`, `cost/sparsity`, each for one
    sentence, padding left out, and of each layer the firing rates `rate/<spiking layer>` and what is kept: `heads/<i>`,
    `ffn/<i>`, and `t_steps/<i>`, with the embedding's first. Counts on the first dev split. After a validation `cost`
    holds all of it, with the firing rate of each spiking layer under `rates` and the work of each kind and row under
    `work`, and `energy` the table of `cost.opponents.comparison`. `model`: the energy model of `energy_pj`."""

    def __init__(self, *, teacher_shape: Shape, model: str):
        self.teacher_shape, self.model = teacher_shape, model
        self.reset()

    def reset(self) -> None:
        self.ops: Operations | None = None
        self.lengths: list[Tensor] = []
        self.activity: Activity | None = None
        self.cost: dict[str, Any] = {}
        self.energy: dict[str, dict[str, Any]] = {}

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.reset()

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        if dataloader_idx:
            return
        student, lengths = student_of(pl_module), batch["attention_mask"].sum(1)
        ops = student_operations(student, outputs.counts, lengths)
        rates = activity(outputs.counts, lengths, heads=student.heads, ffn=student.ffn, t_steps=student.steps)
        self.ops = ops if self.ops is None else self.ops + ops
        self.activity = rates if self.activity is None else self.activity + rates
        self.lengths.append(lengths)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        student = student_of(pl_module)
        spiking, active = sends_spikes(student), summed_activity(self.activity)
        rate, rates = (active.rate(), active.rates()) if spiking else (1.0, {})  # each activation is sent
        shape, own = student_shape(student), student_network(student, summed(self.ops))
        masks = {"heads": student.heads, "ffn": student.ffn}
        lengths = torch.cat([part.to(own.ops.ac.device) for part in distributed.gather(torch.cat(self.lengths).cpu())])
        others = opponents(
            lengths,
            shape=shape,
            teacher_shape=self.teacher_shape,
            t_steps=student.steps,
            bits=student.stored_bits,
            links=missing_synapses(student),
            **masks,
        )
        if not spiking:
            del others["equal_bits"]
        without_spikes = silent(own, shape=shape, t_steps=student.steps, coding=student.coding)
        self.energy = comparison(own, others, without_spikes, rate=rate)
        costs = summarize(
            own,
            dense_ops=dense(lengths, shape=shape),
            model=ENERGY_MODELS[self.model],
            shape=shape,
            t_steps=student.steps,
            coding=student.coding,
            bits=student.stored_bits,
            synapses=student.synapse_count(),
            **masks,
        )
        costs |= {"rate": rate, "sparsity": 1 - rate}  # NeuroBench's activation sparsity, arXiv 2304.04640
        self.cost = {**costs, "rates": rates, "work": own.ops.work()}
        logged = {f"cost/{name}": float(value) for name, value in costs.items()}
        logged |= {f"rate/{spiking_layer}": value for spiking_layer, value in rates.items()}
        kept = {"t_steps": student.steps, "heads": student.heads.sum(1).tolist(), "ffn": student.ffn.sum(1).tolist()}
        logged |= {f"{name}/{i}": float(n) for name, numbers in kept.items() for i, n in enumerate(numbers)}
        pl_module.log_dict(logged, rank_zero_only=True)


def summed(ops: Operations) -> Operations:
    """The operations of all processes together."""
    samples = distributed.total(torch.tensor(float(ops.samples), dtype=torch.float64, device=ops.ac.device))
    return ops.mapped(distributed.total, samples=int(samples))


def summed_activity(activity: Activity) -> Activity:
    """The activity in all processes together."""
    sums = ({name: distributed.total(n) for name, n in part.items()} for part in (activity.spikes, activity.places))
    return Activity(*sums)
