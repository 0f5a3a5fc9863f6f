"""The comparisons: each runs pieces of equal work in turns, checks that their logits agree, and gives ratios."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from experiments.bench import nets, peers
from experiments.bench.clock import Timing, Work, graphed, peak_bytes, shares, timings
from experiments.bench.nets import Size
from experiments.bench.rooflines import least_bytes, operations, products, split_products
from spikeprune.kernels import attach
from spikeprune.models.inference import infer
from spikeprune.models.modeling import SpikingBert

EXACT = 1e-9  # of a logit's size, in float64: no spike differs
# in float32 products of other shapes round otherwise, a spike on the edge falls either way, and what it excites differs
# (in a deep network of random weights more and more from layer to layer, so this is asked of two layers only)
SAME = 0.2


@dataclass(frozen=True)
class Setting:
    """Where and on what the benchmark runs; `budget`: seconds for one comparison, after its warm-up."""

    device: torch.device
    kernels: str
    sizes: tuple[Size, ...]
    sentences: int
    tokens: int
    t_steps: int
    budget: float
    growth: tuple[int, ...] = (4, 16, 64, 125)

    def goal(self, *bound) -> tuple[str, float] | None:
        """Bounds that are set for a GPU are no goal elsewhere."""
        return bound if self.device.type == "cuda" else None

    def batch(self, size: Size, sentences: int | None = None, tokens: int | None = None) -> dict[str, Tensor]:
        shape = {"sentences": sentences or self.sentences, "tokens": tokens or self.tokens}
        return nets.batch(size, **shape, device=self.device)

    def student(self, size: Size, **options) -> SpikingBert:
        made = nets.student(size, self.device, **options)
        attach(made, self.kernels)
        return made


@dataclass
class Row:
    """One ratio. `goal`: a bound, `at least` or `at most`."""

    group: str
    network: str
    setting: str
    comparison: str
    ours: Timing | None = None
    other: Timing | None = None
    ratio: float | None = None
    goal: tuple[str, float] | None = None
    difference: float | None = None  # of the two sides' logits, relative
    skipped: str = ""
    more: dict[str, float] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        if self.goal is None or self.ratio is None:
            return None
        kind, bound = self.goal
        return self.ratio >= bound if kind == "at least" else self.ratio <= bound


def difference(one: Tensor, other: Tensor) -> float:
    return ((one - other).norm() / one.norm()).item()


def simulated(student: SpikingBert, batch: dict[str, Tensor]) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.no_grad():
            return student(**batch, mode="spiking", scores=False).logits

    return run


def exact_difference(name: str) -> float:
    """How far a peer's logits are from ours in float64, on a small network and the CPU."""
    size, device = Size("check", 48, 2, 4, 96, vocab=100), torch.device("cpu")
    student = nets.student(size, device, unit_theta=True, t_steps=9, coding="per_step", spikes="binary").double()
    batch = nets.batch(size, sentences=4, tokens=16, device=device)
    run = peers.PEERS[name](student, 9)
    return difference(simulated(student, batch)(), run(batch["input_ids"], batch["attention_mask"]))


def shallow_difference(at: Setting, size: Size, name: str) -> float:
    """How far a peer's logits are from ours in float32 in the first two layers, where and as it is timed."""
    size = replace(size, layers=2)
    student = at.student(size, unit_theta=True, t_steps=at.t_steps, coding="per_step", spikes="binary")
    batch = at.batch(size)
    logits = peers.PEERS[name](student, at.t_steps)(batch["input_ids"], batch["attention_mask"])
    return difference(simulated(student, batch)(), logits)


def closed_differences(at: Setting, size: Size, student: SpikingBert) -> tuple[float, float]:
    """How far the closed form's logits are from the simulation's: in float64, and in float32 in two layers."""
    found = []
    for made, batch in (
        (copy.deepcopy(student).double(), at.batch(size, 4, 32)),
        (at.student(replace(size, layers=2), t_steps=student.steps[0]), at.batch(size)),
    ):
        found.append(difference(infer(made, **batch).logits, infer(made, **batch, stepwise=True).logits))
    return found[0], found[1]


def in_tf32(work: Work) -> Work:
    """`work` with float32 products that may be rounded to 10 bits before they are summed, on tensor cores."""

    def run() -> object:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            return work()
        finally:
            torch.set_float32_matmul_precision(before)

    return run


def simulation(at: Setting) -> Iterator[Row]:
    """(a), (b), (c) and (e): the same per_step network, binary spikes, by everybody; and our other codings."""
    group = "simulation"
    for size in at.sizes:
        student = at.student(size, unit_theta=True, t_steps=at.t_steps, coding="per_step", spikes="binary")
        batch = at.batch(size)
        shape = {"t_steps": at.t_steps, "sentences": at.sentences, "tokens": at.tokens}
        common = {"group": group, "network": size.name}
        common["setting"] = f"T {at.t_steps}, B {at.sentences}, N {at.tokens}"
        works: dict[str, Work] = {"ours": simulated(student, batch)}
        works["products"] = products(size, **shape, device=at.device)
        if at.kernels == "triton":
            works["split products"] = split_products(size, **shape, device=at.device)
        rows = []
        logits = works["ours"]()
        for name, goal in (
            ("spikingjelly", at.goal("at least", 2.0)),
            ("snntorch", None),
            ("loop", at.goal("at least", 10.0)),
        ):
            comparison = f"times as fast as {TITLES[name]}"
            row = Row(**common, comparison=comparison, goal=goal, skipped=peers.lacking(name))
            rows.append((name, row))
            if not row.skipped:
                run = peers.PEERS[name](student, at.t_steps)
                work = partial(run, batch["input_ids"], batch["attention_mask"])
                row.difference = difference(logits, work())
                exact, shallow = exact_difference(name), shallow_difference(at, size, name)
                if exact < EXACT and shallow < SAME:
                    works[name] = work
                    if at.device.type == "cuda" and goal is not None:
                        works[f"{name}, TF32"] = in_tf32(work)
                        comparison = f"times as fast as {TITLES[name]}, TF32 allowed there"
                        rows.append((f"{name}, TF32", Row(**common, comparison=comparison)))
                        rows[-1][1].difference = difference(logits, works[f"{name}, TF32"]())
                else:
                    found = f"logits differ by {exact:.2g} in float64, {shallow:.2g} in float32"
                    row.skipped = f"not the same network: {found}"
        other = at.student(size, t_steps=at.t_steps, coding="running_mean")
        works["running_mean"] = simulated(other, batch)
        found = timings(works, at.device, budget=at.budget)
        for name, row in rows:
            if not row.skipped:
                row.ours, row.other = found["ours"], found[name]
                row.ratio = row.other.median / row.ours.median
            yield row
        counted = {"operations": operations(size, **shape), "bytes": least_bytes(size, **shape)}
        for name, coding in (("ours", "per_step"), ("running_mean", "running_mean")):
            comparison = f"times the time of its matrix products alone ({coding})"
            row = Row(
                **common, comparison=comparison, goal=at.goal("at most", 1.5), ours=found[name], other=found["products"]
            )
            row.ratio, row.more = row.ours.median / row.other.median, counted
            yield row
            if "split products" in found:
                comparison = f"times the time of the int8 products that it runs on ({coding})"
                row = Row(**common, comparison=comparison, ours=found[name], other=found["split products"])
                row.ratio = row.ours.median / row.other.median
                yield row


TITLES = {
    "spikingjelly": "SpikingJelly's multi-step neurons with torch layers",
    "snntorch": "snnTorch's loop",
    "loop": "a loop over steps as in SpikingBERT",
}


def evaluation(at: Setting) -> Iterator[Row]:
    """(d): what `spikeprune evaluate` computes, spike counts included, beside HF BERT's dense forward."""
    steps = 4
    for size in at.sizes:
        student, bert, batch = at.student(size, t_steps=steps), size.bert().to(at.device), at.batch(size)
        small = nets.compacted(student, 0.3)
        long = copy.deepcopy(student)
        long.set_t_steps(at.growth[-1])
        gap = difference(infer(student, **batch).logits, infer(student, **batch, stepwise=True).logits)
        exact, shallow = closed_differences(at, size, student)
        unequal = "" if exact < EXACT and shallow < SAME else f"not the simulation: {exact:.2g}, {shallow:.2g} off"

        def dense(bert=bert, batch=batch) -> Tensor:
            with torch.no_grad():
                return bert(**batch).logits

        works = {
            "dense": dense,
            "ours": lambda student=student, batch=batch: infer(student, **batch),
            "small": lambda small=small, batch=batch: infer(small, **batch),
            "long": lambda long=long, batch=batch: infer(long, **batch),
        }
        if at.device.type == "cuda":
            works |= {f"{name}, CUDA graphs": graphed(work, at.device) for name, work in works.items()}
        found = timings(works, at.device, budget=at.budget)
        common = {"group": "evaluation, accumulate", "network": size.name}
        place = f"B {at.sentences}, N {at.tokens}"
        rows = (
            ("ours", f"T {steps}, {place}", "times the time of HF BERT's dense forward", ("at most", 1.5)),
            ("long", f"T {at.growth[-1]}, {place}", "times the time of HF BERT's dense forward", ("at most", 1.5)),
            ("small", f"T {steps}, {place}", "times the time of the dense forward, 30 % kept", ("at most", 1.0)),
        )
        ways = ("", ", CUDA graphs") if len(found) > 4 else ("",)
        for (name, setting, comparison, goal), way in itertools.product(rows, ways):
            row = Row(
                **common, setting=setting, comparison=comparison + way, goal=goal, skipped=unequal, difference=gap
            )
            row.ours, row.other = found[name + way], found["dense" + way]
            row.ratio = None if unequal else row.ours.median / row.other.median
            yield row


def growth(at: Setting) -> Iterator[dict]:
    """Seconds and peak memory of one batch against T for each way to evaluate, and against B and N."""
    size = at.sizes[0]
    ways = {
        "accumulate, closed form": ("accumulate", False),
        "accumulate, step by step": ("accumulate", True),
        "running_mean": ("running_mean", True),
        "per_step": ("per_step", True),
    }
    for title, (coding, stepwise) in ways.items():
        student = at.student(size, t_steps=1, coding=coding)
        base = {"T": at.t_steps, "B": at.sentences, "N": at.tokens}
        settings = [{**base, "T": t} for t in at.growth]
        settings += [{**base, "B": base["B"] // 4}, {**base, "B": 2 * base["B"]}]
        settings += [{**base, "N": base["N"] // 4}, {**base, "N": 2 * base["N"]}]
        for place in settings:
            student.set_t_steps(place["T"])
            batch = at.batch(size, place["B"], place["N"])

            def work(student=student, batch=batch, stepwise=stepwise) -> None:
                infer(student, **batch, stepwise=stepwise)

            found = timings({"ours": work}, at.device, budget=at.budget / 8, least=1)["ours"]
            yield {"way": title, **place, "seconds": found.median, "bytes": peak_bytes(work, at.device)}


def profiles(at: Setting) -> Iterator[dict]:
    """Where the time of an evaluation, a simulation and a training step goes, at several T."""
    from experiments.bench.training import distillation

    size = at.sizes[0]
    ways = {
        "evaluation, accumulate": ("accumulate", False),
        "simulation, accumulate": ("accumulate", True),
        "simulation, running_mean": ("running_mean", True),
        "simulation, per_step": ("per_step", True),
    }
    for title, (coding, stepwise) in ways.items():
        student, batch = at.student(size, t_steps=1, coding=coding), at.batch(size)
        for t_steps in at.growth:
            student.set_t_steps(t_steps)
            work = lambda s=student, b=batch, w=stepwise: infer(s, **b, stepwise=w)  # noqa: E731
            yield {"what": title, "T": t_steps, **shares(work, at.device)}
    for t_steps in (at.growth[0], at.growth[-1]):
        step = distillation(at, size, spiking=True, t_steps=t_steps)
        yield {"what": "training step", "T": t_steps, **shares(step, at.device)}
