"""Words moved against a loss: adversarial training of the word embeddings (Miyato et al. 2017, arXiv 1605.07725).

Each sentence has its own move, by the same length per word. One length for a whole batch would go into the few
sentences where the loss is steepest and leave the others where they were.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def still(words: nn.Embedding, batch: Mapping[str, Tensor]) -> Tensor:
    """No move of the batch's word vectors, `[B, N, D]`, with regard to which a loss can be differentiated."""
    like = words.weight
    return like.new_zeros(*batch["input_ids"].shape, words.embedding_dim).requires_grad_()


@contextmanager
def added(words: nn.Embedding, move: Tensor | None) -> Iterator[None]:
    """`move [B, N, D]` is added to what the table gives; None: nothing is."""
    if move is None:
        yield
        return
    hook = words.register_forward_hook(lambda table, ids, vectors: vectors + move)
    try:
        yield
    finally:
        hook.remove()


def against(loss: Tensor, at: Tensor, batch: Mapping[str, Tensor], length: float) -> Tensor:
    """The move of each sentence, `[B, N, D]`, along its slope of the scalar `loss`, whose history stays.

    `at`: what `still` gave, added while the loss was formed. `length`: Euclidean, of a word vector's move, in the root
    mean square over its sentence's tokens. A sentence without slope stays.
    """
    (slope,) = torch.autograd.grad(loss, at, retain_graph=True)
    tokens = batch["attention_mask"].to(slope.dtype)
    slope = slope * tokens[..., None]
    steep = slope.flatten(1).norm(dim=1).clamp(min=torch.finfo(slope.dtype).tiny)  # [B]
    return slope / steep[:, None, None] * (length * tokens.sum(1).sqrt())[:, None, None]
