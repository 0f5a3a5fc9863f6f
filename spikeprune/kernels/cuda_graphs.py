"""CUDA graphs: a thousand launches from Python become one replay, of an evaluation or of a training step."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Batch = Mapping[str, Tensor]
Terms = dict[str, Tensor]

PATIENCE = 2  # steps of a shape that run as they are: a capture costs about four steps, and a rare shape never pays
SHAPES = 64  # of an evaluation that are captured at most: each graph keeps what it puts out


class GraphedTerms:
    """`terms(batch)`, scalars of which only `loss` carries a gradient, and that gradient, replayed as one CUDA graph.

    There is one graph for each shape of a batch, captured at its third appearance, and all go when `state` changes: it
    must name whatever `terms` reads from Python (time steps, strength). What is read from tensors (weights, masks) may
    change in place at any time. `modules()` hold the parameters that learn. The sums are the same as without graphs,
    and so are the random draws of a resumed run: a capture leaves the generator as it found it.

    After a replay the loss has no history: `backward` hands out the gradients that came with it. They are neither
    scaled nor summed over calls. Raises RuntimeError, CUDA's, where `terms` waits for the device in its middle.
    """

    def __init__(self, terms: Callable[[Batch], Terms], modules: Callable[[], Sequence[nn.Module]]):
        self.terms, self.modules = terms, modules
        self.met: Counter[Hashable] = Counter()
        self.captured: dict[Hashable, Step] = {}
        self.gradients: dict[nn.Parameter, Tensor] = {}  # where every graph leaves them
        self.learnt: Sequence[nn.Parameter] = ()  # those that the last replay has a gradient for
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
        for name, tensor in step.inputs.items():
            tensor.copy_(batch[name])
        step.graph.replay()
        self.learnt = step.learnt
        # the next replay writes over what this one put out
        return dict(zip(step.terms, torch.stack(list(step.terms.values())).unbind(), strict=True))

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
            with torch.cuda.stream(side):  # what is worked out once, is by now
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
    """A captured step: the tensors it reads its batch from and puts its terms into, and which parameters it moves."""

    graph: torch.cuda.CUDAGraph
    inputs: dict[str, Tensor]
    terms: Terms
    learnt: list[nn.Parameter]


@contextmanager
def undisturbed() -> Iterator[None]:
    """No garbage collection while it lasts: a dropped graph that is collected during a capture makes it invalid. And no
    casts from autocast's cache: one made before the capture is not in the graph, whose replays would go on with the
    weights of then; one made in it would lie in the graph's memory when later steps find it."""
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
    """The norm of each tensor, `[n]`, of the order 2 or infinity: hundreds of small results, whose launches cost more
    than a quarter of a graphed step. Where the tensors lie in the same places three times in a row, as weights do and
    what `GraphedTerms` leaves, they are replayed as one CUDA graph; on a CPU, and elsewhere, worked out as they are.
    """

    MOST = 4  # graphs that are held

    def __init__(self, order: float):
        self.order = order
        self.captured: dict[Hashable, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self.last: Hashable = None
        self.met = 0

    @torch.no_grad()
    def __call__(self, tensors: Sequence[Tensor], replay: bool) -> Tensor:
        """`replay`: whether a graph may be captured; a new tensor either way."""
        if not replay:
            return self.norms(tensors)
        places = tuple((tensor.data_ptr(), tensor.shape) for tensor in tensors)
        self.met = self.met + 1 if places == self.last else 1
        self.last = places
        if places not in self.captured:
            if self.met <= PATIENCE or len(self.captured) == self.MOST:
                return self.norms(tensors)
            self.captured[places] = self.capture(tensors)
        graph, norms = self.captured[places]
        graph.replay()
        return norms.clone()

    def norms(self, tensors: Sequence[Tensor]) -> Tensor:
        return torch.stack(torch._foreach_norm(list(tensors), ord=self.order))

    def capture(self, tensors: Sequence[Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        graph = torch.cuda.CUDAGraph()
        with undisturbed(), torch.cuda.graph(graph, capture_error_mode="thread_local"):
            norms = self.norms(tensors)
        return graph, norms


class GraphedInference:
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
        with undisturbed(), torch.inference_mode(False), torch.no_grad():
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
