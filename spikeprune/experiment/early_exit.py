"""Early exit: inference on a sentence ends once its largest class probability is above a bound, the confidence rule of
dynamic inference with spiking networks (Li et al. 2023, SEENN, arXiv 2304.01230). The operations of the test are part
of the cost: the classifier's MACs, a softmax, and with [CLS] pooling the pooler's tanh; the pooler's own product grows
spike by spike and is counted already.

In the synchronous codings all layers step together and are causal, so one simulation contains every early exit: the
logits read after t steps are those of a run of t steps. A bound of 1, which no probability passes, is the static
network, without a test.

Shapes: T steps, B batch, N tokens, D hidden, L layers, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor

from spikeprune.config.tasks import Task
from spikeprune.cost.dense import dense
from spikeprune.cost.energy_models import ENERGY_MODELS, EnergyModel
from spikeprune.cost.kinds import Operations, of_rows
from spikeprune.cost.summary import summarize
from spikeprune.errors import InputError
from spikeprune.experiment.build import arithmetic
from spikeprune.experiment.context import RunContext
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.outputs import inputs_of
from spikeprune.models.shape import student_network, student_operations, student_shape
from spikeprune.snn.coding import read_running_mean
from spikeprune.training.metrics import main_metric, task_metrics

BOUNDS = (0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
Batch = dict[str, Tensor]


def check_early_exit(student: SpikingBert, task: Task) -> None:
    """Raises InputError where there are no early logits, or no probability."""
    if student.coding == "accumulate":
        raise InputError(
            "--early-exit: the coding accumulate has one output, at the end; add student.coding=running_mean, which "
            "reads the same weights after every step"
        )
    if task.regression:
        raise InputError(f"--early-exit: {task.name} is a regression, whose output has no probability")


def measure_early_exit(context: RunContext, student: SpikingBert) -> dict[str, Any]:
    """`dynamic` on the first dev split, of a student that passes `check_early_exit`."""
    data = context.data.val_dataloader()[0].data
    order, size = data.lengths.argsort(stable=True), context.config.data.eval_batch_size
    home, device = student.classifier.weight.device, arithmetic.device(context.config)

    def batches() -> Iterator[Batch]:
        for rows in order.split(size):
            yield {name: x.to(device) for name, x in data.batch(rows.tolist()).items()}

    found = dynamic(student.to(device), batches, task=context.task, model=ENERGY_MODELS[context.config.cost.model])
    student.to(home)
    return found


@dataclass(frozen=True)
class Exit:
    """The result of a batch: logits, operations of the network and of the exit test, steps of each sentence."""

    logits: Tensor  # [B, C]
    work: Operations
    overhead: Operations | None  # of the exit test
    steps: Tensor  # of the embedding and of each layer, float64 [B, L+1]
    early: Tensor  # bool [B]


class EveryExit:
    """One simulation of a batch in a synchronous coding, and where each sentence of it may end."""

    def __init__(self, student: SpikingBert, batch: Batch):
        self.student, self.shape = student, student_shape(student)
        self.tokens, self.lengths = batch["attention_mask"].bool(), batch["attention_mask"].sum(1)
        outputs = student(**inputs_of(batch), mode="spiking", count=True, pulses=True)
        self.counts, pulses, leak = outputs.counts, outputs.pulses, student.embedding.neurons.leak
        self.last, self.full = len(pulses), max(student.steps)
        self.logits = student.classify(read_running_mean(pulses, self.last, leak), self.tokens)  # [T_L, B, C]
        self.logits[-1] = outputs.logits

    def stops(self, bound: float) -> Tensor:
        """The step after which each sentence ends, 1 to T, long [B]; there is no test at the last layer's last step."""
        passed = self.logits.double().softmax(-1).amax(-1) > bound  # in float64, so that none passes by rounding
        passed = torch.cat([passed[:-1], torch.ones_like(passed[:1])]).long().argmax(0) + 1
        return passed.where(passed < self.last, self.full)

    def ended(self, stops: Tensor, overhead: Operations | None = None) -> Exit:
        """Every sentence ended after its own number of steps."""
        student, work = self.student, []
        for stop in stops.unique().tolist():
            mine = stops == stop
            counts = {name: spikes[:stop, mine] for name, spikes in self.counts.items()}
            steps = [min(t, stop) for t in student.steps]
            done = student_operations(student, counts, self.lengths[mine], shape=self.shape, t_steps=steps)
            work.append(done.mapped(Tensor.cpu))
        at = stops.clamp(max=self.last) - 1
        logits = self.logits[at, torch.arange(len(at), device=at.device)]
        steps = torch.minimum(stops[:, None], torch.tensor(student.steps, device=stops.device)).double()
        return Exit(logits, reduce(add, work), overhead, steps, stops < self.full)

    def overhead(self, stops: Tensor) -> Operations:
        """Operations of the tests up to each sentence's exit, beside the one classification of every run."""
        shape, times = self.shape, stops.clamp(max=self.last - 1).double()  # no test at the last step
        extra_logits = times.sum() - (stops < self.last).sum()  # an early exit returns its last test's logits
        tanh = shape.hidden * (shape.pooling == "cls")
        mac, softmax = extra_logits * shape.hidden * shape.classes, times.sum() * shape.classes
        head = torch.zeros(shape.layers + 2, dtype=torch.float64)
        head[-1] = 1.0
        kinds = {"mac": mac, "softmax": softmax, "activation": extra_logits * tanh}
        work = {kind: head * float(value) for kind, value in kinds.items()}
        return of_rows(len(head), head, tokens=head.new_zeros(()), samples=len(times), **work)


class Row:
    """Quality and cost under one bound, or number of steps, over any number of batches."""

    def __init__(self, task: Task):
        self.task, self.metrics, self.exits = task, task_metrics(task), []

    def add(self, done: Exit, labels: Tensor) -> None:
        self.metrics.update(done.logits.float().cpu().argmax(-1), labels.cpu())
        self.exits.append(done)

    def result(self, student: SpikingBert, model: EnergyModel, plain: Operations) -> dict[str, Any]:
        shape, work = student_shape(student), reduce(add, (done.work for done in self.exits))
        overheads = [done.overhead for done in self.exits if done.overhead is not None]
        none = of_rows(len(work.ac), work.ac, tokens=work.tokens, samples=work.samples)
        overhead = reduce(add, overheads) if overheads else none
        alone, tested = (student_network(student, ops) for ops in (work, work.with_work(overhead)))
        steps = torch.cat([done.steps for done in self.exits]).cpu()  # [samples, L+1]
        cost = summarize(
            tested,
            dense_ops=plain,
            model=model,
            shape=shape,
            heads=student.heads,
            ffn=student.ffn,
            bits=student.stored_bits,
            synapses=student.synapse_count(),
        )
        latency = steps.amax(1).mean().item()  # all layers tick together
        metrics = self.metrics.compute()
        return {
            "metrics": metrics,
            "main": main_metric(self.task, metrics),
            "mean_steps": steps.mean().item(),
            "t_steps": steps.mean(0).tolist(),
            "early": torch.cat([done.early for done in self.exits]).double().mean().item(),
            "cost": {**cost, "latency_steps": latency, "latency_stages": latency},
            "overhead": {**overhead.per_sample(), "energy_pj": model.per_sample(tested) - model.per_sample(alone)},
        }


@torch.no_grad()
def dynamic(
    student: SpikingBert,
    batches: Callable[[], Iterable[Batch]],
    *,
    task: Task,
    model: EnergyModel,
    bounds: Sequence[float] = BOUNDS,
) -> dict[str, Any]:
    """Quality and cost without and with stopping, for each bound, and after each number of steps.

    Returns plain JSON types: `static` (no early exit), `bounds` (a row each, with `energy_saving` over the static
    network, the overhead of the exit test included) and `curve` (all layers cut to t steps, t = 1 …). `mean_steps` is
    over sentences and layers, `early` the share of sentences that stopped early, `t_steps` the mean steps of the
    embedding and each layer.
    """
    was_training, most = student.training, max(student.steps)
    student.eval()
    static, curve, chosen = Row(task), [Row(task) for _ in range(most)], [Row(task) for _ in bounds]
    plain = []
    for batch in batches():
        run, labels = EveryExit(student, batch), batch["labels"]
        plain.append(dense(batch["attention_mask"].sum(1).cpu(), shape=run.shape))
        static.add(run.ended(torch.full_like(run.lengths, run.full)), labels)
        for t, row in enumerate(curve, 1):
            row.add(run.ended(torch.full_like(run.lengths, t)), labels)
        for bound, row in zip(bounds, chosen, strict=True):
            stops = run.stops(bound)
            row.add(run.ended(stops, run.overhead(stops) if bound < 1 else None), labels)
    student.train(was_training)
    whole = static.result(student, model, reduce(add, plain))
    stopped = [row.result(student, model, reduce(add, plain)) for row in chosen]
    for row in stopped:
        row["energy_saving"] = whole["cost"]["energy_pj"] / row["cost"]["energy_pj"]
    shown = ("metrics", "main", "mean_steps", "t_steps", "cost")
    cut = [row.result(student, model, reduce(add, plain)) for row in curve]
    return {
        "coding": student.coding,
        "static": whole,
        "bounds": [{"bound": bound, **row} for bound, row in zip(bounds, stopped, strict=True)],
        "curve": [{"steps": t, **{key: row[key] for key in shown}} for t, row in enumerate(cut, 1)],
    }
