"""Early exit: inference on a sample ends once its prediction is stable; the overhead of the exit test is counted.

Two rules. `confidence`: the largest class probability so far is above a bound. `asr`: an average spiking rate has
changed by less than a bound in one step, mean over real tokens and channels.

In the synchronous codings all layers step together and are causal, so one simulation contains every early exit: the
logits read after t steps are those of a run of t steps. `asr` tests the rates from which the logits are read. In
`accumulate` there are logits only at the end; `asr` is tested at every spiking layer, whose spike train then ends early
and whose sum so far is its mean (`spiking.early`).

The operations of the test are in `cost/exit_overhead.py`. A bound that no sample can pass (`asr` 0, `confidence` 1) is
the static network, without a test.

Shapes: T steps, B batch, n real tokens, D hidden, L layers, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor

from spikeprune.config.tasks import Task
from spikeprune.cost.energy import Prices, energy_pj, summarize
from spikeprune.cost.exit_overhead import extra, rate_checks
from spikeprune.cost.operations import Operations, count, dense
from spikeprune.cost.shapes import Shape
from spikeprune.errors import known
from spikeprune.models.modeling import SpikingBert, layer_of
from spikeprune.models.outputs import INPUTS, Outputs
from spikeprune.snn.coding import read_running_mean
from spikeprune.training.metrics import main_metric, task_metrics

BOUNDS = {"asr": (0.2, 0.1, 0.05, 0.02, 0.01), "confidence": (0.6, 0.7, 0.8, 0.9, 0.95, 0.99)}
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Ended:
    """The result of a batch: logits, operations of the network and of the exit test, steps of each sample."""

    logits: Tensor  # [B, C]
    work: Operations
    overhead: Operations | None  # of the exit test
    steps: Tensor  # of the embedding and of each layer, float64 [B, L+1]; see `stages`
    latency: Tensor  # steps and stages until the logits, float64 [B, 2]
    early: Tensor  # bool [B]


def never(rule: str, bound: float) -> bool:
    """Whether no sample can pass the bound."""
    return bound <= 0 if rule == "asr" else bound >= 1


# ------------------------------------------------------------------------------------------------ synchronous codings


class EveryExit:
    """One simulation of a batch in a synchronous coding, and where each sample of it may end."""

    def __init__(self, student: SpikingBert, batch: Batch, shape: Shape):
        self.student, self.shape = student, shape
        self.tokens, self.lengths = batch["attention_mask"].bool(), batch["attention_mask"].sum(1)
        outputs = simulate(student, batch, pulses=True)
        self.counts, pulses, leak = outputs.counts, outputs.pulses, student.embedding.neurons.leak
        self.last, self.full = len(pulses), max(student.steps)
        values = read_running_mean(pulses, self.last, leak)
        self.logits = student.classify(values, self.tokens)  # [T_L, B, C]
        self.logits[-1] = outputs.logits
        rates = read_running_mean(pulses.sign().double(), self.last, leak)  # so that no bound is passed by rounding
        weights = self.tokens[..., None].to(rates.dtype)
        if student.pooling == "cls":  # the rates from which the logits are read
            rates, weights = rates[:, :, :1], weights[:, :1]
        change = ((rates[1:] - rates[:-1]).abs() * weights).sum((2, 3)) / (weights.sum((1, 2)) * rates.shape[-1])
        self.change = torch.cat([change.new_full((1, change.shape[1]), torch.inf), change])  # [T_L, B]

    def stops(self, rule: str, bound: float) -> Tensor:
        """The step after which each sample ends, 1 to T, long [B]; there is no test at the last layer's last step."""
        passed = self.change < bound if rule == "asr" else self.logits.double().softmax(-1).amax(-1) > bound
        if never(rule, bound):
            passed = torch.zeros_like(passed)
        passed = torch.cat([passed[:-1], torch.ones_like(passed[:1])]).long().argmax(0) + 1
        return passed.where(passed < self.last, self.full)

    def ended(self, stops: Tensor, overhead: Operations | None = None) -> Ended:
        """Every sample ended after its own number of steps."""
        student, parts = self.student, []
        for stop in stops.unique().tolist():
            mine = stops == stop
            counts = {site: spikes[:stop, mine] for site, spikes in self.counts.items()}
            steps = [min(t, stop) for t in student.steps]
            parts.append(operations(student, counts, self.lengths[mine], self.shape, steps))
        at = stops.clamp(max=self.last) - 1
        logits = self.logits[at, torch.arange(len(at), device=at.device)]
        steps = torch.minimum(stops[:, None], torch.tensor(student.steps, device=stops.device)).double()
        latency = steps.amax(1, keepdim=True).expand(-1, 2)
        return Ended(logits, reduce(add, parts), overhead, steps, latency, stops < self.full)

    def overhead(self, rule: str, stops: Tensor) -> Operations:
        """Operations of the tests up to each sample's exit, beside the one classification of every run."""
        shape, times = self.shape, stops.clamp(max=self.last - 1).double()  # no test at the last step
        if rule == "asr":
            tokens = torch.ones_like(times) if shape.pooling == "cls" else self.lengths.double()
            per_check = tokens * shape.hidden * (times - 1).clamp(min=0)  # the first step has nothing to compare with
            return rate_checks(
                shape, {shape.layers + 1: per_check.sum()}, self.student.embedding.neurons.leak, len(times)
            )
        extra_logits = times.sum() - (stops < self.last).sum()  # an early exit returns its last test's logits
        tanh = shape.hidden * (shape.pooling == "cls")
        mac, elementwise = (
            extra_logits * shape.hidden * shape.classes,
            times.sum() * shape.classes + extra_logits * tanh,
        )
        return extra(shape, len(times), mac={-1: mac}, elementwise={-1: elementwise})


# --------------------------------------------------------------------------------------------------------- accumulate


def layer_by_layer(student: SpikingBert, batch: Batch, shape: Shape, bound: float | None) -> Ended:
    """`accumulate`: each spiking layer's train ends for each sample once its rate is stable; `None`: never."""
    lengths = batch["attention_mask"].sum(1)
    tested = bound is not None and not never("asr", bound)
    outputs = simulate(student, batch, settled=bound if tested else None)
    work = operations(student, outputs.counts, lengths, shape, student.steps)
    whole = {name: torch.full_like(lengths, student.steps[layer_of(name) + 1]) for name in student.spiking_layers()}
    stops = outputs.stops if tested else whole
    steps, stages = turns(student, stops)
    early = torch.stack([stops[name] < whole[name] for name in stops]).any(0)
    latency = torch.stack([steps.sum(1), stages], 1)
    return Ended(
        outputs.logits, work, site_checks(student, stops, lengths, shape) if tested else None, steps, latency, early
    )


def turns(student: SpikingBert, stops: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Mean steps of a layer's five populations that fire in turn (the slowest of q, k and v is one of them), with the
    embedding's before them, [B, L+1]; and all of them one after the other, [B]."""
    columns, total = [stops["embedding"].double()], stops["embedding"].double()
    for i in range(len(student.layers)):
        first = torch.stack([t for name, t in stops.items() if name in {f"layers.{i}.{s}" for s in SIDE_BY_SIDE}])
        others = [stops[f"layers.{i}.{name}"] for name in ("context", "attention", "intermediate", "output")]
        stages = torch.stack([first.amax(0), *others]).double().sum(0)
        columns.append(stages / 5)
        total = total + stages
    return torch.stack(columns, 1), total


SIDE_BY_SIDE = ("query", "key", "value")


def site_checks(student: SpikingBert, stops: dict[str, Tensor], lengths: Tensor, shape: Shape) -> Operations:
    """Each spiking layer is tested at every step but the first and the last of its T; pruned units are left out."""
    tested: dict[int, Tensor] = {}
    for name, taken in stops.items():
        layer, kind = layer_of(name), name.rpartition(".")[2]
        width: Tensor | float = shape.hidden
        if kind in (*SIDE_BY_SIDE, "context"):
            width = student.heads[layer].sum().double() * shape.head_size
        elif kind == "intermediate":
            width = student.ffn[layer].sum().double()
        times = (taken.clamp(max=student.steps[layer + 1] - 1) - 1).clamp(min=0).double()
        tested[layer + 1] = tested.get(layer + 1, 0) + (times * lengths).sum() * width
    return rate_checks(shape, tested, student.embedding.neurons.leak, len(lengths))


# ------------------------------------------------------------------------------------------------------------- prices


def operations(student: SpikingBert, counts, lengths: Tensor, shape: Shape, steps: Sequence[int]) -> Operations:
    """`operations.count`, on the CPU."""
    kept = {"heads": student.heads, "ffn": student.ffn, "t_steps": steps, "links": student.links()}
    found = count(counts, lengths, shape=shape, coding=student.coding, **kept)
    kinds = {kind: getattr(found, kind).cpu() for kind in ("ac", "mac", "elementwise", "ac_per_step")}
    return Operations(**kinds, samples=found.samples)


def simulate(student: SpikingBert, batch: Batch, **asked: Any) -> Outputs:
    return student(*(batch[name] for name in INPUTS), mode="spiking", count=True, **asked)


# ------------------------------------------------------------------------------------------------------------ results


class Row:
    """Quality and cost under one exit rule and bound, over any number of batches."""

    def __init__(self, task: Task):
        self.task, self.metrics, self.parts = task, task_metrics(task), []

    def add(self, ended: Ended, labels: Tensor) -> None:
        logits = ended.logits.float().cpu()
        self.metrics.update(logits[:, 0] if self.task.regression else logits.argmax(-1), labels.cpu())
        self.parts.append(ended)

    def quality(self) -> dict[str, Any]:
        metrics = self.metrics.compute()
        return {"metrics": metrics, "main": main_metric(self.task, metrics)}

    def result(self, student: SpikingBert, prices: Prices, plain: Operations, shape: Shape) -> dict[str, Any]:
        work = reduce(add, (part.work for part in self.parts))
        overheads = [part.overhead for part in self.parts if part.overhead is not None]
        overhead = reduce(add, overheads) if overheads else extra(shape, work.samples)
        both = Operations(
            *(a + b for a, b in zip(sums(work), sums(overhead), strict=True)), work.ac_per_step, work.samples
        )
        steps, latency = (torch.cat([getattr(part, name) for part in self.parts]).mean(0).cpu() for name in WAITS)
        masks = {"heads": student.heads, "ffn": student.ffn}
        stored = {"bits": student.stored_bits, "synapses": student.synapse_count()}
        cost = summarize(both, dense_ops=plain, prices=prices, shape=shape, **masks, **stored)
        cost |= {"latency_steps": latency[0].item(), "latency_stages": latency[1].item()}
        return {
            **self.quality(),
            "mean_steps": steps.mean().item(),
            "t_steps": steps.tolist(),
            "early": torch.cat([part.early for part in self.parts]).double().mean().item(),
            "cost": cost,
            "overhead": {**overhead.per_sample(), "energy_pj": energy_pj(overhead, prices)},
        }


WAITS = ("steps", "latency")


def sums(ops: Operations) -> tuple[Tensor, Tensor, Tensor]:
    return ops.ac, ops.mac, ops.elementwise


@torch.no_grad()
def dynamic(
    student: SpikingBert,
    batches: Callable[[], Iterable[Batch]],
    *,
    task: Task,
    shape: Shape,
    prices: Prices,
    rule: str,
    bounds: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Quality and cost without and with stopping, for each bound, and after each number of steps.

    `batches()` is iterated once in the synchronous codings; in `accumulate` once for each bound and each number of
    steps, since there every early exit changes the inputs of the layers above. Returns plain JSON types: `static` (no
    early exit), `bounds` (a row each, with `energy_saving` over the static network, the overhead of the exit test
    included) and `curve` (all layers cut to t steps, t = 1 …). `mean_steps` is over samples and layers, `early` the
    share of samples of which any layer stopped early, `t_steps` the mean steps of the embedding and each layer.

    Raises ValueError for `confidence` where no early logits, or no probability, exist.
    """
    known("rule", rule, BOUNDS)
    stationary = student.coding == "accumulate"
    if rule == "confidence" and (stationary or task.regression):
        raise ValueError("confidence needs a synchronous coding and a classification task; use the rule asr")
    bounds = list(BOUNDS[rule] if bounds is None else bounds)
    was_training, own = student.training, student.steps
    student.eval()
    rows: dict[Any, Row] = {key: Row(task) for key in ["static", *range(1, max(own) + 1), *(("b", b) for b in bounds)]}
    plain = []

    def add_result(batch: Batch, key: Any, ended: Ended) -> None:
        rows[key].add(ended, batch["labels"])

    try:
        if stationary:
            for key in rows:
                student.set_t_steps([min(t, key) for t in own] if isinstance(key, int) else own)
                for batch in batches():
                    add_result(
                        batch, key, layer_by_layer(student, batch, shape, key[1] if isinstance(key, tuple) else None)
                    )
        else:
            for batch in batches():
                run = EveryExit(student, batch, shape)
                add_result(batch, "static", run.ended(torch.full_like(run.lengths, run.full)))
                for t in range(1, run.full + 1):
                    add_result(batch, t, run.ended(torch.full_like(run.lengths, t)))
                for bound in bounds:
                    stops = run.stops(rule, bound)
                    overhead = None if never(rule, bound) else run.overhead(rule, stops)
                    add_result(batch, ("b", bound), run.ended(stops, overhead))
        plain = reduce(add, (dense(batch["attention_mask"].sum(1).cpu(), shape=shape) for batch in batches()))
    finally:
        student.set_t_steps(own)
        student.train(was_training)
    found = {key: row.result(student, prices, plain, shape) for key, row in rows.items()}
    static = found["static"]
    chosen = [{"bound": b, **found["b", b]} for b in bounds]
    for row in chosen:
        row["energy_saving"] = static["cost"]["energy_pj"] / row["cost"]["energy_pj"]
    shown = ("metrics", "main", "mean_steps", "t_steps", "cost")
    curve = [{"steps": t, **{key: found[t][key] for key in shown}} for t in range(1, max(own) + 1)]
    return {"rule": rule, "coding": student.coding, "static": static, "bounds": chosen, "curve": curve}
