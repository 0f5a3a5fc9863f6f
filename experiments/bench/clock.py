"""Time, memory and shares of operations, on CPU and CUDA alike."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

Work = Callable[[], object]
GROUPS = ("matrix products", "attention", "the rest")
LEAVES = {  # operators of the CPU that call no other
    **dict.fromkeys(("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"), "matrix products"),
    **dict.fromkeys(
        (
            "aten::_scaled_dot_product_flash_attention_for_cpu",
            "aten::_scaled_dot_product_flash_attention_for_cpu_backward",
            "aten::_softmax",
            "aten::_softmax_backward_data",
        ),
        "attention",
    ),
}


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

    Two calls of each warm up. Rounds continue until `budget` seconds are spent, at least `least`, at most 50.
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


def graphed(work: Work, device: torch.device) -> Work:
    """`work` as one CUDA graph: its kernels without the time that the host takes to launch them."""
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(2):
            work()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = work()  # in the graph's memory

    def replay() -> object:
        graph.replay()
        return output

    return replay


def peak_bytes(work: Work, device: torch.device) -> int:
    """Peak memory of the tensors of `work`, beyond what was allocated before."""
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
    current = most = 0
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        current += event.nbytes()
        most = max(most, current)
    return most


def shares(work: Work, device: torch.device) -> dict[str, float]:
    """Share of one call's wall time that goes to matrix products, to attention and to everything else (the profiler's
    own work included); on CUDA the time that kernels take, and apart from it the time in which none runs."""
    cuda = device.type == "cuda"
    for _ in range(2):
        work()
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as recorded:
        wall = seconds(work, device)
    found = dict.fromkeys(GROUPS, 0.0)
    for event in recorded.profiler.kineto_results.events():
        name = event.name()
        if cuda and event.device_type() == DeviceType.CUDA:
            found[_group(name.lower())] += event.duration_ns() * 1e-9
        elif not cuda and name in LEAVES:  # not their callers
            found[LEAVES[name]] += event.duration_ns() * 1e-9
    if not cuda:
        found["the rest"] = max(0.0, wall - sum(found.values()))
    total = max(wall, sum(found.values()))
    idle = {"no kernel running": 1 - sum(found.values()) / total} if cuda else {}
    return {**{group: value / total for group, value in found.items()}, **idle}


def _group(kernel: str) -> str:
    if any(word in kernel for word in ("fmha", "flash", "attention", "softmax")):
        return "attention"
    products = ("gemm", "cutlass", "xmma", "cublas", "_product")
    return "matrix products" if any(word in kernel for word in products) else "the rest"
