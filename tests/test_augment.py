"""Training sentences changed at random: where words go, and what takes their places."""

from __future__ import annotations

import torch

from spikeprune.data.augment import (
    FIXED,
    PIECE,
    WORD,
    Augment,
    copy_sentences,
    first_place,
    join_sentences,
    nearest_words,
    replace_words,
    swap_sentences,
    token_kinds,
    words_of_batch,
)
from spikeprune.data.tokenize import train_wordpiece


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


def joined(ids: torch.Tensor, width: int) -> tuple[list[list[int]], torch.Tensor]:
    torch.manual_seed(1)
    found, mask = join_sentences(ids, (ids > 0).long(), width=width, pad=9)
    return [row[: int(n)].tolist() for row, n in zip(found, mask.sum(1), strict=True)], torch.where(mask > 0, 9, found)


def test_joined_sentences_go_on_with_another_one() -> None:
    """[CLS] 1, [SEP] 2, padding 0 before and 9 behind; words say whose they are."""
    ids = torch.tensor([[1, 11, 12, 2, 0, 0], [1, 21, 2, 0, 0, 0], [1, 31, 32, 33, 34, 2]])
    rows, padding = joined(ids, 12)
    words = [row[row > 2].tolist() for row in ids]
    assert all(row[0] == 1 and row[-1] == 2 for row in rows) and (padding == 9).all()
    second = [row[1 + len(own) : -1] for row, own in zip(rows, words, strict=True)]
    assert [row[1 : 1 + len(own)] for row, own in zip(rows, words, strict=True)] == words
    assert sorted(second) == sorted(words) and second != words  # every sentence goes on with one, each with another
    cut, _ = joined(ids, 7)
    assert [row[:6] for row in cut] == [row[:6] for row in rows]
    assert all(len(row) <= 7 and row[-1] == 2 for row in cut)


def test_a_share_of_batches_is_joined() -> None:
    how = {"replace_words": 0.0, "replace_by": "batch", "max_length": 6, "pad": 0, "kinds": torch.ones(9).long()}
    augment = Augment(join_sentences=0.3, **how)
    ids = torch.tensor([[1, 5, 2], [1, 6, 2]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    torch.manual_seed(0)
    widths = [augment(batch)["input_ids"].shape[1] for _ in range(1000)]
    assert set(widths) == {3, 6} and 250 < widths.count(6) < 350


def test_neighbours_are_the_nearest_of_their_kind() -> None:
    """Vectors on a circle, a degree each: 0 is special, 1 to 5 are words, 6 to 8 pieces of words, 9 is a word far
    away, whose length says nothing."""
    angle = torch.deg2rad(torch.tensor([2.5, 0.0, 1.0, 3.0, 7.0, 12.0, 2.0, 2.2, 20.0, 90.0]))
    embedding = torch.stack([angle.cos(), angle.sin()], 1).double()
    embedding[9] *= 100
    kinds = torch.tensor([FIXED, WORD, WORD, WORD, WORD, WORD, PIECE, PIECE, PIECE, WORD])
    found = nearest_words(embedding, kinds, 2, chunk=2)
    assert found.tolist() == [[0, 0], [2, 3], [1, 3], [2, 1], [3, 5], [4, 3], [7, 8], [6, 8], [7, 6], [5, 4]]
    assert nearest_words(embedding, kinds, 3)[6].tolist() == [7, 8, 7]  # there are two others only
    alone = nearest_words(embedding, torch.tensor([WORD] + [FIXED] * 9), 2)
    assert alone.tolist() == [[i, i] for i in range(10)]


def test_words_give_way_to_their_neighbours() -> None:
    kinds = torch.tensor([FIXED, FIXED, FIXED, *[WORD] * 40, *[PIECE] * 20])
    how = {"replace_by": "neighbours", "join_sentences": 0.0, "max_length": 16, "pad": 0, "kinds": kinds}
    augment = Augment(replace_words=0.8, **how)
    torch.manual_seed(0)
    embedding = torch.randn(63, 5)
    augment.prepare(embedding)
    ids = torch.randint(3, 63, (400, 12))
    ids[:, 0], ids[:, 9], ids[:, 10:] = 1, 2, 0
    batch = {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": torch.ones(400)}
    changed = augment(batch)
    new = changed["input_ids"]
    free = (ids > 2) & (ids > 0)
    moved = new != ids
    assert not (moved & ~free).any() and 0.35 < moved[free].double().mean() < 0.45  # uniform from 0 to 0.8
    near = nearest_words(embedding, kinds, 15)
    assert all(int(new[at]) in near[ids[at]].tolist() for at in zip(*torch.where(moved), strict=True))
    assert (kinds[new] == kinds[ids]).all() and changed["labels"] is batch["labels"]
    assert batch["input_ids"] is ids and not augment.state_dict()
    drawn = {int(new[at]) for at in zip(*torch.where(moved & (ids == 7)), strict=True)}
    assert len(drawn) > 5  # one of fifteen, not always the same


def test_a_word_gives_way_to_the_same_one_wherever_it_stands() -> None:
    ids = torch.randint(0, 9, (50, 20))
    first = first_place(ids)
    assert all(first[b, i] == ids[b].tolist().index(int(ids[b, i])) for b in range(50) for i in range(20))
    kinds = torch.tensor([FIXED] * 3 + [WORD] * 60)
    how = {"replace_by": "neighbours", "join_sentences": 0.0, "max_length": 16, "pad": 0, "kinds": kinds}
    augment = Augment(replace_words=0.9, **how)
    augment.prepare(torch.randn(63, 5))
    pair = torch.randint(3, 63, (200, 5)).repeat(1, 2)
    pair[:, 4], pair[:, 9] = 2, 2
    new = augment({"input_ids": pair, "attention_mask": torch.ones_like(pair)})["input_ids"]
    assert torch.equal(new[:, :5], new[:, 5:]) and (new != pair).double().mean() > 0.25


def test_kinds_of_tokens() -> None:
    tokenizer = train_wordpiece(["a film that never ends", "the ending of an unending story"], vocab_size=80)
    names = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    kinds = dict(zip(names, token_kinds(tokenizer).tolist(), strict=True))
    assert {name for name, kind in kinds.items() if kind == FIXED} == set(tokenizer.all_special_tokens)
    assert all((kind == PIECE) == name.startswith("##") for name, kind in kinds.items() if kind != FIXED)
    tokenizer.add_tokens(["[unused0]"])
    assert token_kinds(tokenizer)[-1] == FIXED


def test_sentences_of_a_pair_change_places() -> None:
    """[CLS] 1, [SEP] 2, padding 0; the last row has no second sentence."""
    ids = torch.tensor([[1, 11, 12, 13, 2, 21, 2, 0], [1, 31, 2, 41, 42, 43, 44, 2], [1, 51, 52, 2, 0, 0, 0, 0]])
    types = torch.tensor([[0] * 5 + [1, 1, 0], [0] * 3 + [1] * 5, [0] * 8])
    mask = (ids > 0).long()
    turned = swap_sentences(ids, mask, types, share=1.0)
    wanted = [[1, 21, 2, 11, 12, 13, 2, 0], [1, 41, 42, 43, 44, 2, 31, 2], ids[2].tolist()]
    assert turned["input_ids"].tolist() == wanted
    assert turned["token_type_ids"].tolist() == [[0] * 3 + [1] * 4 + [0], [0] * 6 + [1, 1], [0] * 8]
    again = swap_sentences(turned["input_ids"], mask, turned["token_type_ids"], share=1.0)
    assert torch.equal(again["input_ids"], ids) and torch.equal(again["token_type_ids"], types)
    torch.manual_seed(0)
    many = swap_sentences(ids[:1].repeat(1000, 1), mask[:1].repeat(1000, 1), types[:1].repeat(1000, 1), share=0.3)
    assert 250 < (many["input_ids"][:, 1] == 21).sum() < 350


def test_second_sentences_become_the_first() -> None:
    """[CLS] 1, [SEP] 2, padding 0; the second row's copy would not fit, the third has no second sentence."""
    ids = torch.tensor([[1, 11, 2, 21, 22, 23, 2, 0], [1, 31, 32, 33, 34, 2, 41, 2], [1, 51, 52, 2, 0, 0, 0, 0]])
    types = torch.tensor([[0] * 3 + [1] * 4 + [0], [0] * 6 + [1, 1], [0] * 8])
    mask = (ids > 0).long()
    copied = copy_sentences(ids, mask, types, share=1.0, pad=0)
    assert copied["input_ids"].tolist() == [[1, 11, 2, 11, 2, 0, 0, 0], ids[1].tolist(), ids[2].tolist()]
    assert copied["attention_mask"].tolist() == [[1] * 5 + [0] * 3, [1] * 8, [1] * 4 + [0] * 4]
    assert copied["token_type_ids"].tolist() == [[0] * 3 + [1, 1] + [0] * 3, types[1].tolist(), [0] * 8]
    longer = copy_sentences(*(torch.cat([x, 0 * x], 1) for x in (ids, mask, types)), share=1.0, pad=0)
    assert longer["input_ids"][1].tolist() == [1, 31, 32, 33, 34, 2, 31, 32, 33, 34, 2, 0, 0, 0, 0, 0]
    torch.manual_seed(0)
    many = copy_sentences(*(x[:1].repeat(1000, 1) for x in (ids, mask, types)), share=0.3, pad=0)
    assert 250 < (many["input_ids"][:, 3] == 11).sum() < 350


def test_a_copys_length_is_its_own() -> None:
    """What weighs a process' losses goes by the tokens that are there after copying."""
    ids = torch.tensor([[1, 11, 2, 21, 22, 23, 2], [1, 31, 32, 2, 41, 2, 0]])
    batch = {"input_ids": ids, "attention_mask": (ids > 0).long(), "share": torch.zeros(4, dtype=torch.float64)}
    batch["token_type_ids"] = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1, 0]])
    how = {"replace_words": 0.0, "replace_by": "batch", "join_sentences": 0.0, "max_length": 7, "pad": 0}
    changed = Augment(**how, copy_sentences=1.0, kinds=torch.full((60,), FIXED))(batch)
    assert changed["attention_mask"].sum(1).tolist() == [5, 7]
    assert changed["share"].tolist() == [1, 1, 1, 6]  # of one process; six tokens a sentence
