"""Training sentences changed at random, which the teacher then answers anew.

A small data set distils badly: the teacher knows its answers by heart and has little to teach on it; on changed
sentences it has to show how it thinks.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from spikeprune import ranks
from spikeprune.data.loader import shares, sums
from spikeprune.errors import known
from spikeprune.models.outputs import INPUTS

FIXED, WORD, PIECE = 0, 1, 2  # kinds of tokens: never changed; begins a word; goes on with one
NEIGHBOURS = 15  # of a word, as many as TinyBERT's augmentation chooses from


class Augment(nn.Module):
    """Batches with words replaced, by the share `replace_words`, after the share `swap_sentences` of pairs was turned
    round, in the share `copy_sentences` of them the second sentence became the first, and the share `join_sentences` of
    batches had sentences joined (see the functions). `replace_by`: `batch`, words of the
    batch's other sentences, or `neighbours`, words that mean nearly the same; these need `prepare`. `kinds long[V]` of
    the vocabulary's tokens; nothing is left in a checkpoint."""

    def __init__(
        self,
        *,
        replace_words: float,
        replace_by: str,
        join_sentences: float,
        swap_sentences: float = 0.0,
        copy_sentences: float = 0.0,
        max_length: int,
        pad: int,
        kinds: Tensor,
    ):
        super().__init__()
        known("replace_by", replace_by, ("batch", "neighbours"))
        self.replace_words, self.replace_by, self.join_sentences = replace_words, replace_by, join_sentences
        self.swap_sentences, self.copy_sentences = swap_sentences, copy_sentences
        self.max_length, self.pad = max_length, pad
        self.register_buffer("kinds", kinds, persistent=False)
        self.register_buffer("neighbours", torch.empty(0, 0, dtype=torch.long), persistent=False)

    def prepare(self, embedding: Tensor) -> None:
        """Look up the neighbours, where they are wanted, in the word embedding `[V, D]`."""
        if self.replace_words and self.replace_by == "neighbours":
            self.neighbours = nearest_words(embedding, self.kinds, NEIGHBOURS)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        batch = self.joined(batch) if self.join_sentences else dict(batch)
        if self.swap_sentences:
            batch |= swap_sentences(*(batch[name] for name in INPUTS), share=self.swap_sentences)
        if self.copy_sentences:
            batch |= copy_sentences(*(batch[name] for name in INPUTS), share=self.copy_sentences, pad=self.pad)
            batch |= share_of(batch)
        if self.replace_words:
            ids, share = batch["input_ids"], self.replace_words
            free = (self.kinds[ids] != FIXED) & (batch["attention_mask"] > 0)
            if self.replace_by == "batch":
                batch["input_ids"] = replace_words(ids, words_of_batch(ids, free), free, share=share)
            else:
                changed = replace_words(ids, any_of(self.neighbours, ids), free, share=share)
                batch["input_ids"] = changed.gather(1, first_place(ids))
        return batch

    def joined(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All of its sentences go on, or none: half of them would pad the others to their length."""
        ids, mask, varied = batch["input_ids"], batch["attention_mask"], dict(batch)
        if torch.rand(()) < self.join_sentences:
            ids, mask = join_sentences(ids, mask, width=min(2 * ids.shape[1], self.max_length), pad=self.pad)
            varied |= {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
        return varied | share_of(varied)  # also where only other processes have joined theirs


def share_of(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The `share` of a batch whose lengths have changed, where it has one; all processes ask together."""
    if "share" not in batch:
        return {}
    own = sums(batch["attention_mask"].sum(1))
    return {"share": shares(own, ranks.total(own), ranks.world())}


def token_kinds(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """long[V]: FIXED for special and unused tokens, PIECE for WordPiece's `##…`, WORD for the others."""
    names = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    kinds = torch.tensor([PIECE if name.startswith("##") else WORD for name in names])
    kinds[tokenizer.all_special_ids] = FIXED
    kinds[[i for i, name in enumerate(names) if name.startswith("[unused")]] = FIXED
    return kinds


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


def any_of(neighbours: Tensor, input_ids: Tensor) -> Tensor:
    """`[B, N]`: for each token a random one of its `neighbours [V, K]`."""
    which = torch.randint(neighbours.shape[1], input_ids.shape, device=input_ids.device)
    return neighbours[input_ids, which]


def first_place(input_ids: Tensor) -> Tensor:
    """`[B, N]`: where in its row the token of each place stands first.

    What stands there goes for all: words that two sentences share, they go on sharing. In a pair whose words change
    one by one a teacher sees two sentences about different things, whatever they said.
    """
    return (input_ids[:, :, None] == input_ids[:, None, :]).int().argmax(2)


@torch.no_grad()
def nearest_words(embedding: Tensor, kinds: Tensor, count: int, chunk: int = 2048) -> Tensor:
    """`[V, K]`: of each token of the word embedding `[V, D]` the `count` tokens of its own kind with the most similar
    vectors (cosine), or as many as there are; a FIXED token has itself only.

    After TinyBERT's augmentation (Jiao et al. 2020, arXiv 1909.10351, algorithm 1), which looks words up in GloVe and
    asks a masked language model; the teacher's own embedding needs neither.
    """
    vectors = F.normalize(embedding.float(), dim=1)
    found = torch.arange(len(embedding), device=embedding.device)[:, None].repeat(1, count)
    for kind in (WORD, PIECE):
        (own,) = torch.where(kinds == kind)
        most = min(count, len(own) - 1)
        if most < 1:
            continue
        for rows in own.split(chunk):
            similar = vectors[rows] @ vectors[own].T
            similar[own[None, :] == rows[:, None]] = -torch.inf
            near = own[similar.topk(most, dim=1).indices]
            found[rows] = near[:, torch.arange(count, device=near.device) % most]
    return found


def join_sentences(input_ids: Tensor, attention_mask: Tensor, *, width: int, pad: int) -> tuple[Tensor, Tensor]:
    """Ids and mask `[B, width]` in which every sentence `[B, N]`, `[CLS] a [SEP]`, goes on with the words of a random
    one of the batch, `[CLS] a b [SEP]`; what is longer than `width`, at least N, is cut before [SEP].

    Half of sst2's training examples have at most ten tokens, its dev sentences 25 on average. Joined, the examples are
    about as long; the teacher says what they mean.
    """
    rows, columns = input_ids.shape
    other = torch.rand(rows, device=input_ids.device).argsort()  # randperm of so few waits for the GPU
    length = attention_mask.sum(1, keepdim=True)  # [B, 1]
    at = torch.arange(width, device=input_ids.device).expand(rows, width)
    first = length - 1  # tokens of it, all but [SEP]
    behind = at - first + 1  # where in the other one; its [CLS] is left out
    own = input_ids.gather(1, at.clamp(max=columns - 1))
    joined = torch.where(at < first, own, input_ids[other].gather(1, behind.clamp(0, columns - 1)))
    mask = (at < first) | (behind < length[other])
    joined[:, -1:] = torch.where(mask[:, -1:], input_ids.gather(1, first), joined[:, -1:])
    return torch.where(mask, joined, pad), mask.to(attention_mask.dtype)


def swap_sentences(
    input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor, *, share: float
) -> dict[str, Tensor]:
    """Ids and types in which a random `share` of the pairs `[B, N]`, `[CLS] a [SEP] b [SEP]`, are `[CLS] b [SEP] a
    [SEP]`.

    What is a paraphrase does not hang on which comes first; what the teacher says of it may. What has no second
    sentence stays."""
    rows, columns = input_ids.shape
    length, second = attention_mask.sum(1, keepdim=True), token_type_ids.sum(1, keepdim=True)  # [B, 1], with its [SEP]
    at = torch.arange(columns, device=input_ids.device).expand(rows, columns)
    turned = torch.where(at <= second, length - second + at - 1, at - second)  # where it comes from
    chosen = (torch.rand(rows, 1, device=input_ids.device) < share) & (second > 0)
    moves = chosen & (at > 0) & (at < length)
    ids = input_ids.gather(1, torch.where(moves, turned, at))
    types = torch.where(moves, (at > second).to(token_type_ids.dtype), token_type_ids)
    return {"input_ids": ids, "token_type_ids": types}


def copy_sentences(
    input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor, *, share: float, pad: int
) -> dict[str, Tensor]:
    """Ids, mask and types in which a random `share` of the pairs `[B, N]`, `[CLS] a [SEP] b [SEP]`, are `[CLS] a [SEP]
    a [SEP]`; what has no second sentence or would not fit stays.

    Where words are replaced afterwards, two sentences are left that differ in a few of them: what makes a paraphrase,
    asked word by word."""
    length, second = attention_mask.sum(1, keepdim=True), token_type_ids.sum(1, keepdim=True)  # [B, 1], with its [SEP]
    columns, first = input_ids.shape[1], length - second  # with [CLS] and [SEP]
    at = torch.arange(columns, device=input_ids.device).expand_as(input_ids)
    chosen = (torch.rand(len(input_ids), 1, device=input_ids.device) < share) & (second > 0)
    chosen &= 2 * first - 1 <= columns
    real = at < 2 * first - 1
    copied = input_ids.gather(1, torch.where(at < first, at, at - first + 1).clamp(max=columns - 1))
    return {
        "input_ids": torch.where(chosen, torch.where(real, copied, pad), input_ids),
        "attention_mask": torch.where(chosen, real.to(attention_mask.dtype), attention_mask),
        "token_type_ids": torch.where(chosen, (real & (at >= first)).to(token_type_ids.dtype), token_type_ids),
    }
