"""Training sentences changed at random: where words go, and what takes their places."""

from __future__ import annotations

import torch

from spikeprune.data.augmentation import Augment, replace_words, replaceable, words_of_batch
from spikeprune.data.tokenizer import train_wordpiece


def replaced(ids: torch.Tensor, mask: torch.Tensor, *, share: float) -> torch.Tensor:
    """By words of the batch; [PAD] 0, [CLS] 1, [SEP] 2."""
    free = (ids > 2) & (mask > 0)
    return replace_words(ids, words_of_batch(ids, free), free, share=share)


def test_replaced_words_are_words_of_the_batch() -> None:
    """[CLS] 1, [SEP] 2; every word occurs once, so that each exchange is seen, and so does what fills the padding."""
    torch.manual_seed(0)
    sizes = torch.randint(1, 30, (200, 1))
    at = torch.arange(32)
    ids = torch.arange(200 * 32).view(200, 32) + 3
    ids = ids.where(at != 0, 1).where(at != sizes + 1, 2)
    mask = (at <= sizes + 1).long()
    words = (ids > 2) & (mask > 0)
    changed = replaced(ids, mask, share=0.6)
    assert torch.equal(changed[~words], ids[~words])
    assert set(changed[words].tolist()) <= set(ids[words].tolist())
    shares = ((changed != ids) & words).sum(1) / words.sum(1)
    long = sizes[:, 0] > 20
    assert 0.25 < shares[long].mean() < 0.35  # uniform from 0 to 0.6 for each sentence
    assert shares[long].min() < 0.1 and shares[long].max() > 0.45
    assert torch.equal(replaced(ids, mask, share=0.0), ids)


def test_a_batch_without_words_stays() -> None:
    ids = torch.tensor([[1, 2, 0], [1, 2, 0]])
    assert torch.equal(replaced(ids, (ids > 0).long(), share=0.9), ids)


def test_a_batch_loses_words_alone() -> None:
    """Special tokens, the mask and the labels stay, and so does the batch that was given."""
    augment = Augment(replace_words=0.8, words=torch.arange(63) > 2)
    torch.manual_seed(0)
    ids = torch.randint(3, 63, (400, 12))
    ids[:, 0], ids[:, 9], ids[:, 10:] = 1, 2, 0
    batch = {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": torch.ones(400)}
    changed = augment(batch)
    moved = changed["input_ids"] != ids
    assert not moved[ids <= 2].any() and 0.35 < moved[ids > 2].double().mean() < 0.45  # uniform from 0 to 0.8
    assert changed["labels"] is batch["labels"] and batch["input_ids"] is ids and not augment.state_dict()


def test_special_and_unused_tokens_stay() -> None:
    tokenizer = train_wordpiece(["a film that never ends", "the ending of an unending story"], vocab_size=80)
    names = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    may = dict(zip(names, replaceable(tokenizer).tolist(), strict=True))
    assert {name for name, free in may.items() if not free} == set(tokenizer.all_special_tokens)
    tokenizer.add_tokens(["[unused0]"])
    assert not replaceable(tokenizer)[-1]
