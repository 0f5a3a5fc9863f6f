"""How time and memory grow with T, B and N in each way to evaluate a student, and where the time goes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from experiments.bench.clock import peak_bytes, shares, timings
from experiments.bench.rows import Setting
from experiments.bench.training import distillation
from spikeprune.models.inference import infer

WAYS = {  # coding, and whether it is simulated step by step
    "accumulate, closed form": ("accumulate", False),
    "accumulate, step by step": ("accumulate", True),
    "running_mean": ("running_mean", True),
    "per_step": ("per_step", True),
}


def growth(at: Setting) -> Iterator[dict]:
    """Seconds and peak memory of one batch against T for each way, and against B and N."""
    base = {"T": at.t_steps, "B": at.sentences, "N": at.tokens}
    places = [{**base, "T": t} for t in at.growth]
    places += [{**base, key: value} for key in ("B", "N") for value in (base[key] // 4, 2 * base[key])]
    for way, (coding, stepwise) in WAYS.items():
        student = at.student(at.sizes[0], t_steps=1, coding=coding)
        for place in places:
            student.set_t_steps(place["T"])
            work = partial(infer, student, **at.batch(at.sizes[0], place["B"], place["N"]), stepwise=stepwise)
            found = timings({"ours": work}, at.device, budget=at.budget / 8, least=1)["ours"]
            yield {"way": way, **place, "seconds": found.median, "bytes": peak_bytes(work, at.device)}


def profiles(at: Setting) -> Iterator[dict]:
    """Shares of the time of an evaluation in each way, and of a training step, at several T."""
    for way, (coding, stepwise) in WAYS.items():
        student, batch = at.student(at.sizes[0], t_steps=1, coding=coding), at.batch(at.sizes[0])
        for t_steps in at.growth:
            student.set_t_steps(t_steps)
            yield {"what": way, "T": t_steps, **shares(partial(infer, student, **batch, stepwise=stepwise), at.device)}
    for t_steps in (at.growth[0], at.growth[-1]):
        step = distillation(at, at.sizes[0], spiking=True, t_steps=t_steps)
        yield {"what": "training step", "T": t_steps, **shares(step, at.device)}
