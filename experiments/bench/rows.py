"""The comparisons: each runs pieces of equal work in turns, checks that their logits agree, and gives ratios."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from experiments.bench import nets, peers
from experiments.bench.clock import Timing, Work, graphed, timings
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

    def timed(self, ours: Timing, other: Timing, *, faster: bool = False) -> Row:
        """The row with its times and their ratio; `faster`: how many times as fast as the other one we are."""
        self.ours, self.other = ours, other
        self.ratio = other.median / ours.median if faster else ours.median / other.median
        return self

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


def unequal(exact: float, shallow: float) -> str:
    """Why two networks are not compared; empty where their logits agree in float64, and in float32 in two layers."""
    if exact < EXACT and shallow < SAME:
        return ""
    return f"not the same network: logits differ by {exact:.2g} in float64, {shallow:.2g} in float32"


TITLES = {  # of a peer, and how many times as fast we mean to be
    "spikingjelly": ("SpikingJelly's multi-step neurons with torch layers", 2.0),
    "snntorch": ("snnTorch's loop", None),
    "loop": ("a loop over steps as in SpikingBERT", 10.0),
}


def peer_rows(
    at: Setting, size: Size, student: SpikingBert, batch: dict[str, Tensor], common: dict[str, str]
) -> Iterator[tuple[Row, Work | None]]:
    """A row for each peer, not timed yet, with its work; of one that is not compared the reason and no work."""
    logits = simulated(student, batch)()
    for name, (title, goal) in TITLES.items():
        row = Row(**common, comparison=f"times as fast as {title}", goal=goal and at.goal("at least", goal))
        row.skipped = peers.lacking(name) or unequal(exact_difference(name), shallow_difference(at, size, name))
        if row.skipped:
            yield row, None
            continue
        work = partial(peers.PEERS[name](student, at.t_steps), batch["input_ids"], batch["attention_mask"])
        row.difference = difference(logits, work())
        yield row, work
        if at.device.type == "cuda" and goal is not None:
            row = Row(**common, comparison=f"{row.comparison}, TF32 allowed there")
            row.difference = difference(logits, in_tf32(work)())
            yield row, in_tf32(work)


def simulation(at: Setting) -> Iterator[Row]:
    """The same per_step network, binary spikes, by everybody; and our codings beside their matrix products."""
    for size in at.sizes:
        student = at.student(size, unit_theta=True, t_steps=at.t_steps, coding="per_step", spikes="binary")
        batch = at.batch(size)
        shape = {"t_steps": at.t_steps, "sentences": at.sentences, "tokens": at.tokens}
        common = {"group": "simulation", "network": size.name}
        common["setting"] = f"T {at.t_steps}, B {at.sentences}, N {at.tokens}"
        rows = list(peer_rows(at, size, student, batch, common))
        works = {row.comparison: work for row, work in rows if work}
        works["per_step"] = simulated(student, batch)
        works["running_mean"] = simulated(at.student(size, t_steps=at.t_steps, coding="running_mean"), batch)
        works["products"] = products(size, **shape, device=at.device)
        if at.kernels == "triton":
            works["split products"] = split_products(size, **shape, device=at.device)
        found = timings(works, at.device, budget=at.budget)
        for row, work in rows:
            yield row.timed(found["per_step"], found[row.comparison], faster=True) if work else row
        counted = {"operations": operations(size, **shape), "bytes": least_bytes(size, **shape)}
        for coding in ("per_step", "running_mean"):
            row = Row(**common, comparison=f"times the time of its matrix products alone ({coding})", more=counted)
            row.goal = at.goal("at most", 1.5)
            yield row.timed(found[coding], found["products"])
            if "split products" in found:
                row = Row(**common, comparison=f"times the time of the int8 products that it runs on ({coding})")
                yield row.timed(found[coding], found["split products"])


def evaluation(at: Setting) -> Iterator[Row]:
    """What `spikeprune evaluate` computes, spike counts included, beside HF BERT's dense forward."""
    steps = 4
    for size in at.sizes:
        student, bert, batch = at.student(size, t_steps=steps), size.bert().to(at.device), at.batch(size)
        long = copy.deepcopy(student)
        long.set_t_steps(at.growth[-1])
        gap = difference(infer(student, **batch).logits, infer(student, **batch, stepwise=True).logits)
        skipped = unequal(*closed_differences(at, size, student))
        networks = {"ours": student, "small": nets.compacted(student, heads=0.3, ffn=0.3), "long": long}
        works: dict[str, Work] = {name: partial(infer, network, **batch) for name, network in networks.items()}
        works["dense"] = partial(nets.logits, bert, batch)
        ways = [""]
        if at.device.type == "cuda":
            ways.append(", CUDA graphs")
            works |= {f"{name}{ways[1]}": graphed(work, at.device) for name, work in works.items()}
        found = timings(works, at.device, budget=at.budget)
        place = f"B {at.sentences}, N {at.tokens}"
        for name, t_steps, comparison, goal in (
            ("ours", steps, "times the time of HF BERT's dense forward", 1.5),
            ("long", at.growth[-1], "times the time of HF BERT's dense forward", 1.5),
            ("small", steps, "times the time of the dense forward, 30 % kept", 1.0),
        ):
            for way in ways:
                row = Row("evaluation, accumulate", size.name, f"T {t_steps}, {place}", comparison + way)
                row.goal, row.difference, row.skipped = at.goal("at most", goal), gap, skipped
                yield row if skipped else row.timed(found[name + way], found["dense" + way])
