"""Words moved against a loss: adversarial training (Miyato et al. 2017, arXiv 1605.07725) of the word embeddings.

There each sentence has its own copy of its rows and its own move; here the table moves as a whole, once for a batch,
which takes no more memory and lets a row that many sentences share move for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def moved_against(words: nn.Parameter, loss: Tensor, length: float) -> Iterator[None]:
    """The table `words [V, D]` moved by `length` (Euclidean, over the whole table) along the gradient of the scalar
    `loss`, whose history stays; where that has no slope, not at all."""
    (slope,) = torch.autograd.grad(loss, words, retain_graph=True)
    with moved(words, slope * (length / slope.norm().clamp(min=torch.finfo(slope.dtype).tiny))):
        yield


@contextmanager
def moved(weight: nn.Parameter, by: Tensor) -> Iterator[None]:
    """`weight` with `by` added; afterwards exactly what it was. The history of what is computed meanwhile stays valid
    where it does not read the weight, as a table's does not."""
    before = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.add_(by)
        yield
    finally:
        with torch.no_grad():
            weight.copy_(before)
