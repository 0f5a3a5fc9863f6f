"""A training step's forward and backward as CUDA graphs: a thousand launches from Python become two replays."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Batch = Mapping[str, Tensor]
Terms = dict[str, Tensor]

PATIENCE = 2  # steps of a shape that run as they are: a capture costs about four steps, and a rare shape never pays


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
