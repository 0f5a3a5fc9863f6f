"""Time, memory and shares of operations, on CPU and CUDA alike."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile

Work = Callable[[], object]
PRODUCTS = ("mm", "linear", "conv")
ATTENTION = ("attention", "softmax", "fmha", "flash", "masked_fill")
GROUPS = ("matrix products", "attention", "the rest")


@dataclass(frozen=True)
class Timing:
    """Seconds of `runs` calls, warm: the median, and the quartiles around it."""

    median: float
    low: float
    high: float
    runs: int


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Work, device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def timings(works: Mapping[str, Work], device: torch.device, *, budget: float, least: int = 3) -> dict[str, Timing]:
    """Time several pieces of work in turns, so that a machine which slows down slows all of them.

    Two calls of each warm up. Rounds go on until `budget` seconds are spent, at least `least`, at most 50.
    """
    for work in works.values():
        seconds(work, device)
        seconds(work, device)
    found: dict[str, list[float]] = {name: [] for name in works}
    start = time.perf_counter()
    while len(next(iter(found.values()))) < 50:
        for name, work in works.items():
            found[name].append(seconds(work, device))
        if len(next(iter(found.values()))) >= least and time.perf_counter() - start > budget:
            break
    return {name: _timing(sorted(values)) for name, values in found.items()}


def _timing(ordered: list[float]) -> Timing:
    n = len(ordered)
    return Timing(median(ordered), ordered[n // 4], ordered[-1 - n // 4], n)


def peak_bytes(work: Work, device: torch.device) -> int:
    """Most memory of tensors that `work` holds at once, beyond what was there before."""
    work()
    gc.collect()
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    held = most = 0
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def shares(work: Work, device: torch.device) -> dict[str, float]:
    """Share of the operators' own time that goes to matrix products, to attention, and to everything else."""
    work()
    cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as recorded:
        work()
        synchronize(device)
    found = dict.fromkeys(GROUPS, 0.0)
    for row in recorded.key_averages():
        own = row.self_device_time_total if cuda else row.self_cpu_time_total
        if not row.key.startswith("aten::"):  # kernels repeat their operator; Triton's have none
            own = own if cuda and row.key in TRITON else 0.0
        name = row.key.removeprefix("aten::").lower()
        group = 1 if any(word in name for word in ATTENTION) else 0 if any(word in name for word in PRODUCTS) else 2
        found[GROUPS[group]] += own
    total = sum(found.values()) or 1.0
    return {group: value / total for group, value in found.items()}


TRITON = ("membrane_scan", "totals", "equilibrium_forward", "equilibrium_backward")
