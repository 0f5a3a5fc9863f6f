"""Training sentences with words replaced at random, for which the teacher then gives targets anew.

A small data set distils badly: the teacher fits its labels almost perfectly, and its soft labels say little more than
these; on changed sentences they do.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase


class Augment(nn.Module):
    """Batches in which up to the share `replace_words` of each sentence's tokens gave way to words of the batch.
    `words bool[V]`: the tokens of the vocabulary that may change; nothing is left in a checkpoint."""

    def __init__(self, *, replace_words: float, words: Tensor):
        super().__init__()
        self.replace_words = replace_words
        self.register_buffer("words", words, persistent=False)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        ids = batch["input_ids"]
        free = self.words[ids] & (batch["attention_mask"] > 0)
        return {**batch, "input_ids": replace_words(ids, words_of_batch(ids, free), free, share=self.replace_words)}


def replaceable(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """bool[V]: all tokens but special and unused ones."""
    special, names = set(tokenizer.all_special_ids), tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    return torch.tensor([i not in special and not name.startswith("[unused") for i, name in enumerate(names)])


def replace_words(input_ids: Tensor, drawn: Tensor, free: Tensor, *, share: float) -> Tensor:
    """`[B, N]` ids in which each sentence has lost a random part of its `free` tokens to those `drawn` in their places.

    The part is drawn uniformly from 0 to `share` for each sentence.
    """
    chance = share * torch.rand(len(input_ids), 1, device=input_ids.device)
    chosen = torch.rand(input_ids.shape, device=input_ids.device) < chance
    return torch.where(chosen & free, drawn, input_ids)


def words_of_batch(input_ids: Tensor, free: Tensor) -> Tensor:
    """`[B, N]`: for each place a random one of the batch's `free` tokens (Tang et al. 2019, arXiv 1903.12136, section
    3.2, replaces words at random)."""
    # sort by random keys with what is fixed last, then read cyclically over the words
    order = torch.rand(input_ids.shape, device=input_ids.device).masked_fill(~free, 2.0).flatten().argsort()
    words = free.sum().clamp(min=1)
    drawn = input_ids.flatten()[order[torch.arange(order.numel(), device=order.device) % words]]
    return drawn.view_as(input_ids)
