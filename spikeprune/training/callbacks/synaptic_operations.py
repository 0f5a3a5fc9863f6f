"""SynOpsLogger: operations, energy, firing rates and latency on the dev split, at each validation."""

from __future__ import annotations

import lightning as L
import torch

from spikeprune.cost.activity import Activity, activity
from spikeprune.cost.energy import Prices, summarize
from spikeprune.cost.operations import Operations, dense
from spikeprune.models.shape import student_operations, student_shape
from spikeprune.training import distributed
from spikeprune.training.protocol import student_of


class SynOpsLogger(L.Callback):
    """Logs `cost/ac`, `cost/mac`, `cost/elementwise`, `cost/energy_pj` …, `cost/rate`, `cost/sparsity`, each for one
    sentence, padding left out, and of each layer the firing rates `rate/<spiking layer>` and what is kept: `heads/<i>`,
    `ffn/<i>`, and `t_steps/<i>`, with the embedding's first. Counts on the first dev split. After a validation `cost`
    holds all of it, with the firing rate of each spiking layer under `rates`."""

    def __init__(self, *, prices: Prices):
        self.prices = prices
        self.reset()

    def reset(self) -> None:
        self.ops: Operations | None = None
        self.dense: Operations | None = None
        self.activity: Activity | None = None
        self.cost: dict[str, float] = {}

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.reset()

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        if dataloader_idx:
            return
        student, lengths = student_of(pl_module), batch["attention_mask"].sum(1)
        ops = student_operations(student, outputs.counts, lengths)
        rates = activity(outputs.counts, lengths, heads=student.heads, ffn=student.ffn, t_steps=student.steps)
        plain = dense(lengths, shape=student_shape(student))
        self.ops = ops if self.ops is None else self.ops + ops
        self.dense = plain if self.dense is None else self.dense + plain
        self.activity = rates if self.activity is None else self.activity + rates

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        student = student_of(pl_module)
        self.cost = summarize(
            summed(self.ops),
            dense_ops=summed(self.dense),
            prices=self.prices,
            shape=student_shape(student),
            heads=student.heads,
            ffn=student.ffn,
            t_steps=student.steps,
            coding=student.coding,
            bits=student.stored_bits,
            synapses=student.synapse_count(),
        )
        active = summed_activity(self.activity)
        rate = active.rate()
        self.cost = {**self.cost, "rate": rate, "sparsity": 1 - rate, "rates": active.rates()}
        logged = {f"cost/{name}": float(value) for name, value in self.cost.items() if name != "rates"}
        logged |= {f"rate/{site}": rate for site, rate in self.cost["rates"].items()}
        kept = {"t_steps": student.steps, "heads": student.heads.sum(1).tolist(), "ffn": student.ffn.sum(1).tolist()}
        logged |= {f"{name}/{i}": float(n) for name, numbers in kept.items() for i, n in enumerate(numbers)}
        pl_module.log_dict(logged, rank_zero_only=True)


def summed(ops: Operations) -> Operations:
    """The operations of all processes together."""
    if distributed.world() == 1:
        return ops
    sums = [distributed.total(x) for x in (ops.ac, ops.mac, ops.elementwise, ops.ac_per_step)]
    samples = distributed.total(torch.tensor(float(ops.samples), dtype=torch.float64, device=ops.ac.device))
    return Operations(*sums, samples=int(samples))


def summed_activity(activity: Activity) -> Activity:
    """The activity in all processes together."""
    if distributed.world() == 1:
        return activity
    sums = ({name: distributed.total(n) for name, n in part.items()} for part in (activity.spikes, activity.places))
    return Activity(*sums)
