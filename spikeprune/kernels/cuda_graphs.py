"""CUDA graphs: the thousand kernel launches of a training step become one replay. Training modules do not import these
classes: `experiment.build` hands them on."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from spikeprune.models.tensors import norms

Batch = Mapping[str, Tensor]
Terms = dict[str, Tensor]

CAPTURE_AFTER = (
    2  # steps of a shape before its capture, which takes as long as four steps: rare shapes are not captured
)


class GraphedTerms:
    """`terms(batch)`, scalars of which only `loss` has a gradient, and that gradient, replayed as one CUDA graph.

    There is one graph for each shape of a batch, captured at its third appearance. All are dropped when `state`
    changes: it must contain whatever `terms` reads from Python (time steps, strength). Tensors that `terms` reads
    (weights, masks) may change in place at any time. `modules()` own the parameters that are trained. Results are those
    without graphs, and so are the random draws of a resumed run: a capture restores the generator's state.

    After a replay the loss has no autograd history: `backward` gives the parameters the gradients that were computed
    with it. They are neither scaled nor summed over calls. Raises CUDA's RuntimeError where `terms` synchronizes.
    """

    def __init__(self, terms: Callable[[Batch], Terms], modules: Callable[[], Sequence[nn.Module]]):
        self.terms, self.modules = terms, modules
        self.seen: Counter[Hashable] = Counter()  # calls of each shape
        self.captured: dict[Hashable, Step] = {}
        self.gradients: dict[nn.Parameter, Tensor] = {}  # every graph writes them here
        self.learnt: Sequence[nn.Parameter] = ()  # those with a gradient in the last replay
        self.state: Hashable = None
        self.pool = None  # of device memory: one step at a time, so all graphs share it

    def __call__(self, batch: Batch, state: Hashable) -> Terms:
        if state != self.state:
            self.drop()
            self.state = state
        shape = tuple((name, tensor.shape) for name, tensor in batch.items())
        if shape not in self.captured:
            self.seen[shape] += 1
            if self.seen[shape] <= CAPTURE_AFTER:
                return self.terms(batch)
            self.captured[shape] = self.capture(batch)
        step = self.captured[shape]
        for name, tensor in step.inputs.items():
            tensor.copy_(batch[name])
        step.graph.replay()
        self.learnt = step.learnt
        # the next replay overwrites these outputs
        return dict(zip(step.terms, torch.stack(list(step.terms.values())).unbind(), strict=True))

    def drop(self) -> None:
        """Forget the graphs. Nothing can use a pool whose graphs are gone, so its memory is returned to the device, for
        other processes too."""
        held, self.captured, self.pool = bool(self.captured), {}, None
        self.seen.clear()
        if held:
            torch.cuda.empty_cache()

    def backward(self, loss: Tensor) -> None:
        """Gives the parameters the gradients of the `loss` that the last call returned."""
        if loss.requires_grad:
            loss.backward()
            return
        for parameter in self.learnt:
            parameter.grad = self.gradients[parameter]

    def capture(self, batch: Batch) -> Step:
        if self.pool is None:
            self.pool = torch.cuda.graph_pool_handle()
        learning = [p for module in self.modules() for p in module.parameters() if p.requires_grad]
        for parameter in learning:
            if parameter not in self.gradients:
                self.gradients[parameter] = torch.empty_like(parameter)
        random = torch.cuda.get_rng_state()
        inputs = {name: tensor.clone() for name, tensor in batch.items()}  # the graph reads its inputs from here
        graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        with undisturbed():
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):  # warm-up: what is computed once and cached is not captured
                self.learn(inputs, learning)
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
                terms, found = self.learn(inputs, learning)
                learnt = [p for p, gradient in zip(learning, found, strict=True) if gradient is not None]
                torch._foreach_copy_([self.gradients[p] for p in learnt], [g for g in found if g is not None])
        torch.cuda.set_rng_state(random)
        return Step(graph, inputs, {name: term.detach() for name, term in terms.items()}, learnt)

    def learn(self, inputs: Batch, learning: Sequence[nn.Parameter]) -> tuple[Terms, tuple[Tensor | None, ...]]:
        terms = self.terms(inputs)
        return terms, torch.autograd.grad(terms["loss"], learning, allow_unused=True)


class Step(NamedTuple):
    """A captured training step: its input tensors, its output terms, and the parameters that have a gradient."""

    graph: torch.cuda.CUDAGraph
    inputs: dict[str, Tensor]
    terms: Terms
    learnt: list[nn.Parameter]


@contextmanager
def undisturbed() -> Iterator[None]:
    """For a capture: no garbage collection, since collecting a dropped graph makes the capture invalid; and no casts
    from autocast's cache, since one made before the capture would be replayed with the weights of then, and one made in
    it would be found by later steps in the graph's memory."""
    gc.collect()
    enabled, cached = gc.isenabled(), torch.is_autocast_cache_enabled()
    gc.disable()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(cached)
        if enabled:
            gc.enable()


class GraphedNorms:
    """The norm of each tensor, `[n]`, of the order 2 or infinity: hundreds of small results, whose launches take more
    than a quarter of a graphed step. For tensors on CUDA: where they lie in the same places three times in a row, as
    weights and the gradients of `GraphedTerms` do, one CUDA graph is replayed.
    """

    MOST = 4  # graphs that are kept

    def __init__(self, order: float):
        self.order = order
        self.captured: dict[Hashable, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self.last: Hashable = None
        self.repeats = 0

    @torch.no_grad()
    def __call__(self, tensors: Sequence[Tensor]) -> Tensor:
        """A new tensor each time."""
        places = tuple((tensor.data_ptr(), tensor.shape) for tensor in tensors)
        self.repeats = self.repeats + 1 if places == self.last else 1
        self.last = places
        if places not in self.captured:
            if self.repeats <= CAPTURE_AFTER or len(self.captured) == self.MOST:
                return norms(tensors, self.order)
            self.captured[places] = self.capture(tensors)
        graph, found = self.captured[places]
        graph.replay()
        return found.clone()

    def capture(self, tensors: Sequence[Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        graph = torch.cuda.CUDAGraph()
        with undisturbed(), torch.cuda.graph(graph, capture_error_mode="thread_local"):
            found = norms(tensors, self.order)
        return graph, found
