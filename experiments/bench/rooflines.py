"""Bounds of a simulation's speed: its matrix products alone, and the rates at which this machine multiplies and
copies."""

from __future__ import annotations

from collections.abc import Callable

import torch

from experiments.bench.clock import timings
from experiments.bench.nets import Size
from spikeprune.kernels import split_integer


def products(size: Size, *, t_steps: int, sentences: int, tokens: int, device: torch.device) -> Callable[[], None]:
    """Every matrix product of a synchronous simulation and nothing else: the linear layers over all steps at once, and
    the attention's two. Results go to memory that is there already."""
    rows, heads, d = t_steps * sentences * tokens, t_steps * sentences * size.heads, size.hidden // size.heads
    x, up = (torch.randn(rows, width, device=device) for width in (size.hidden, size.ffn))
    square = torch.randn(size.hidden, size.hidden, device=device)
    wide = torch.randn(size.hidden, size.ffn, device=device)
    q, k = torch.randn(heads, tokens, d, device=device), torch.randn(heads, d, tokens, device=device)
    scores, context = torch.empty(heads, tokens, tokens, device=device), torch.empty_like(q)
    y = torch.empty_like(x)

    def run() -> None:
        for _ in range(size.layers):
            for _ in range(4):  # query, key, value, out
                torch.mm(x, square, out=y)
            torch.bmm(q, k, out=scores)
            torch.bmm(scores, q, out=context)
            torch.mm(x, wide, out=up)
            torch.mm(up, wide.t(), out=y)

    return run


def split_products(
    size: Size, *, t_steps: int, sentences: int, tokens: int, device: torch.device
) -> Callable[[], None]:
    """The linear maps of `products` as `kernels.encoder` computes them, on the tensor cores: spikes as bytes, weights
    in three bytes, currents written in float32; attention's two products in halves of 11 bits."""
    rows, d = sentences * tokens, size.hidden // size.heads
    x, f = (torch.randint(0, 2, (t_steps, rows, w), device=device).to(torch.int8) for w in (size.hidden, size.ffn))
    shapes = ((3 * size.hidden, size.hidden), (size.hidden, size.hidden), (size.ffn, size.hidden))
    weights = [split_integer.split(torch.randn(shape, device=device), None, 1) for shape in shapes]
    down = split_integer.split(torch.randn(size.hidden, size.ffn, device=device), None, 1)
    units = torch.ones(t_steps, device=device)
    heads = t_steps * sentences * size.heads
    q, k = (torch.randn(heads, *shape, device=device).half() for shape in ((tokens, d), (d, tokens)))
    scores, context = torch.empty(heads, tokens, tokens, device=device).half(), torch.empty_like(q)

    def run() -> None:
        for _ in range(size.layers):
            for weight in weights:
                split_integer.product(x, weight, units, steps=t_steps, reals=weight.codes.shape[1])
            split_integer.product(f, down, units, steps=t_steps, reals=size.hidden)
            for _ in range(2):
                torch.bmm(q, k, out=scores)
                torch.bmm(scores, q, out=context)

    return run


def operations(size: Size, *, t_steps: int, sentences: int, tokens: int) -> float:
    """Floating-point operations of `products`."""
    rows = t_steps * sentences * tokens
    return 2.0 * size.layers * rows * (4 * size.hidden**2 + 2 * size.hidden * size.ffn + 2 * tokens * size.hidden)


def least_bytes(size: Size, *, t_steps: int, sentences: int, tokens: int) -> float:
    """Fewest bytes that a layer-by-layer simulation moves: each product's operand and result once, each train once.

    A layer has ten tensors as wide as D (the results of query, key, value, out and down; the trains of k, v, c, h and
    a') and two as wide as F (the result of up, the train of f), each written once and read once, in float32. That some
    are read by several is left out.
    """
    numbers = t_steps * sentences * tokens * (2 * 10 * size.hidden + 2 * 2 * size.ffn)
    return 4.0 * size.layers * numbers


def ceilings(device: torch.device, *, budget: float) -> dict[str, float]:
    """Measured: operations a second of a large float32 product, and bytes a second of a copy, read plus written."""
    n, numbers = (8192, 2**28) if device.type == "cuda" else (2048, 2**25)
    a, b = (torch.randn(n, n, device=device) for _ in range(2))
    out, source = torch.empty_like(a), torch.randn(numbers, device=device)
    target = torch.empty_like(source)
    works = {"product": lambda: torch.mm(a, b, out=out), "copy": lambda: target.copy_(source)}
    found = timings(works, device, budget=budget)
    return {
        "float32 operations a second": 2.0 * n**3 / found["product"].median,
        "bytes a second": 8.0 * numbers / found["copy"].median,
    }
