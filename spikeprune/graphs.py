"""CUDA graphs: a thousand launches from Python become one replay, of an evaluation, or two, of a training step."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

Batch = Mapping[str, Tensor]
Terms = dict[str, Tensor]

PATIENCE = 2  # steps of a shape that run as they are: a capture costs about four steps, and a rare shape never pays
SHAPES = 64  # of an evaluation that are captured at most: each graph keeps what it puts out


class GraphedTerms:
    """`terms(batch)`, scalars of which only `loss` carries a gradient, replayed from CUDA graphs.

    There is one pair of graphs for each shape of a batch, captured at its third appearance, and all go when `state`
    changes: it must name whatever `terms` reads from Python (time steps, strength). What is read from tensors (weights,
    masks) may change in place at any time. `modules()` hold the parameters that learn. The sums are the same as without
    graphs, and so are the random draws of a resumed run: a capture leaves the generator as it found it.

    Raises RuntimeError, CUDA's, where `terms` waits for the device in its middle.
    """

    def __init__(self, terms: Callable[[Batch], Terms], modules: Callable[[], Sequence[nn.Module]]):
        self.terms, self.modules = terms, modules
        self.met: Counter[Hashable] = Counter()
        self.captured: dict[Hashable, Step] = {}
        self.state: Hashable = None
        self.pool = None  # of device memory: one step at a time, so all graphs share it

    def __call__(self, batch: Batch, state: Hashable) -> Terms:
        if state != self.state:
            self.state, self.captured, self.pool = state, {}, None  # a pool without graphs is gone for good
            self.met.clear()
        shape = tuple((name, tensor.shape) for name, tensor in batch.items())
        if shape not in self.captured:
            self.met[shape] += 1
            if self.met[shape] <= PATIENCE:
                return self.terms(batch)
            self.captured[shape] = self.capture(batch)
        step = self.captured[shape]
        loss, *rest = step(*batch.values())
        # the next replay writes over what this one put out
        copies = torch.stack([loss.detach(), *(term.detach() for term in rest)]).unbind()
        return {"loss": loss, **dict(zip(step.names[1:], copies[1:], strict=True))}

    def capture(self, batch: Batch) -> Step:
        if self.pool is None:
            self.pool = torch.cuda.graph_pool_handle()
        random = torch.cuda.get_rng_state()
        inputs = tuple(tensor.clone() for tensor in batch.values())  # the graph reads its inputs from here
        step = Step(self.terms, tuple(batch), self.modules())
        with uncollected():
            step = torch.cuda.make_graphed_callables(step, inputs, allow_unused_input=True, pool=self.pool)
        torch.cuda.set_rng_state(random)
        return step


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage collection while it lasts: a dropped graph that is collected during a capture makes it invalid."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class GraphedAnswers:
    """`answer(batch)`, tensors without gradient in a nest of tuples, dicts and dataclasses, replayed from CUDA graphs.

    One graph for each shape of a batch, captured at its third appearance. All go when `state` changes: it must name
    what `answer` reads from Python, and where in memory the tensors lie that it reads. Their numbers may change.
    """

    def __init__(self, answer: Callable[[Batch], Any]):
        self.answer = answer
        self.met: Counter[Hashable] = Counter()
        self.captured: dict[Hashable, tuple[torch.cuda.CUDAGraph, dict[str, Tensor], Any]] = {}
        self.state: Hashable = None
        self.pool = None

    def __call__(self, batch: Batch, state: Hashable) -> Any:
        if state != self.state:
            self.state, self.captured, self.pool = state, {}, None
            self.met.clear()
        shape = tuple((name, tensor.shape) for name, tensor in batch.items())
        if shape not in self.captured:
            self.met[shape] += 1
            if self.met[shape] <= PATIENCE or len(self.captured) == SHAPES:
                return self.answer(batch)
            self.captured[shape] = self.capture(batch)
        graph, inputs, outputs = self.captured[shape]
        for name, tensor in inputs.items():
            tensor.copy_(batch[name])
        graph.replay()
        return copied(outputs)  # the next replay writes over what this one put out

    def capture(self, batch: Batch) -> tuple[torch.cuda.CUDAGraph, dict[str, Tensor], Any]:
        if self.pool is None:
            self.pool = torch.cuda.graph_pool_handle()
        graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        with uncollected(), torch.inference_mode(False), torch.no_grad():
            inputs = {name: tensor.clone() for name, tensor in batch.items()}
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):  # what is worked out once, is by now
                self.answer(inputs)
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
                outputs = self.answer(inputs)
        return graph, inputs, outputs


def copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, tuple):
        return tuple(copied(part) for part in value)
    if isinstance(value, dict):
        return {name: copied(part) for name, part in value.items()}
    if is_dataclass(value):
        return type(value)(**{field.name: copied(getattr(value, field.name)) for field in fields(value)})
    return value


class Step(nn.Module):
    """`terms` in the form that `make_graphed_callables` takes: tensors in and out, and the parameters its own."""

    def __init__(self, terms: Callable[[Batch], Terms], inputs: Sequence[str], modules: Sequence[nn.Module]):
        super().__init__()
        self.terms, self.inputs, self.names = terms, inputs, ("loss",)
        self.learning = nn.ModuleList(modules)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        terms = self.terms(dict(zip(self.inputs, tensors, strict=True)))
        self.names = tuple(terms)
        return tuple(terms.values())
