"""Text to tokens: the vocabulary, and the corpus of general_kd."""

from __future__ import annotations

import json

import pytest
from tiny_data import mrpc as mrpc
from tiny_data import tokenizer as tokenizer

from spikeprune.data.corpus import CorpusData, encode_pieces, read_corpus
from spikeprune.data.tokenizer import check_vocabulary, load_tokenizer, train_wordpiece
from spikeprune.errors import InputError

# -- tokenizer --------------------------------------------------------------------------------------------------------


def test_wordpiece_is_deterministic_and_survives_saving(tmp_path, mrpc):
    texts = mrpc.splits["train"].first
    one, two = train_wordpiece(texts, vocab_size=120), train_wordpiece(texts[::-1], vocab_size=120)
    assert one.get_vocab() == two.get_vocab() and len(one) == 120 and one.pad_token_id == 0
    one.save_pretrained(tmp_path)
    back = load_tokenizer(str(tmp_path))
    assert back.get_vocab() == one.get_vocab()
    row = back("The DOCTOR", "a pilot")
    assert back.convert_ids_to_tokens(row["input_ids"])[0] == "[CLS]"
    assert row == one("the doctor", "a pilot") and row["token_type_ids"][-2:] == [1, 1]
    assert row["token_type_ids"][0] == 0 and row["input_ids"].count(back.sep_token_id) == 2
    assert back.model_max_length == 512
    for words, size, message in (([], 100, "no text"), (texts, 20, "raise it")):
        with pytest.raises(InputError, match=message):
            train_wordpiece(words, vocab_size=size)


def test_vocabulary_must_match_the_data(tokenizer, mrpc):
    assert check_vocabulary(tokenizer, mrpc.splits["train"].first) == 0
    with pytest.raises(InputError, match=r"100% of the data's tokens are \[UNK\]"):
        check_vocabulary(tokenizer, ["Ω Ж", "Я Ф Ω"] * 20)


def test_no_tokenizer_there(tmp_path, monkeypatch):
    monkeypatch.setattr("spikeprune.data.tokenizer.reachable", lambda: False)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizer.json").write_text("{")
    for checkpoint, message in (
        (tmp_path, "holds no tokenizer"),
        (tmp_path / "nowhere", "not a directory"),
        (tmp_path / "broken", "cannot be read"),
        ("no-owner/no-model", "hub cannot be reached"),
    ):
        with pytest.raises(InputError, match=message):
            load_tokenizer(str(checkpoint))


def test_a_special_token_outside_the_vocabulary_is_refused(tmp_path, mrpc):
    """transformers would look for its id without end."""
    train_wordpiece(mrpc.splits["train"].first, vocab_size=120).save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "unk_token": ""}))
    with pytest.raises(InputError, match="has no unk_token"):
        load_tokenizer(str(tmp_path))


# -- corpus -----------------------------------------------------------------------------------------------------------


def corpus(files, tokenizer, **changes) -> CorpusData:
    options = dict(max_length=16, batch_size=4, seed=0)
    return CorpusData(sources=[str(file) for file in files], tokenizer=tokenizer, **{**options, **changes})


def test_corpus_drops_headings_and_cuts_paragraphs(tmp_path, tokenizer):
    text = (
        " \n = Doctors = \n \n the doctor helped the nurse . \n = = More = = \n"
        + "the pilot saw the lawyer . " * 9
        + "\n"
    )
    (tmp_path / "a.txt").write_text(text)
    assert [len(line.split()) for line in read_corpus([str(tmp_path / "a.txt")])] == [6, 54]
    data = corpus([tmp_path / "a.txt"], tokenizer)
    lengths = data.encoded.lengths.tolist()
    assert max(lengths) <= 16 and sum(lengths) - 2 * len(lengths) == 60  # no token lost, none repeated
    batch = next(iter(data.train_dataloader()))
    assert set(batch) == {"input_ids", "attention_mask", "token_type_ids"}
    assert (batch["input_ids"][:, 0] == tokenizer.cls_token_id).all()
    assert len(data.fixed_batches(2, 2, seed=0)[0]["input_ids"]) == 2


def test_corpus_errors(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr("spikeprune.data.hub.reachable", lambda: False)
    (tmp_path / "empty.txt").write_text(" = Heading = \n\n")
    for sources, message in (
        ([], "data.corpus is empty"),
        ([tmp_path / "no.txt"], "no.txt is missing"),
        ([tmp_path / "empty.txt"], "holds no text"),
        (["no-owner/no-corpus"], "neither on the hub nor in its cache"),
    ):
        with pytest.raises(InputError, match=message):
            corpus(sources, tokenizer)


def test_a_hub_corpus_of_something_else_than_text_is_refused(monkeypatch):
    import datasets

    table = datasets.DatasetDict(train=datasets.Dataset.from_dict({"text": ["a line", None]}))
    monkeypatch.setattr("spikeprune.data.corpus.load_splits", lambda *_, **__: table)
    with pytest.raises(InputError, match="owner/name, row 1: None is no text"):
        read_corpus(["owner/name"])


def test_a_corpus_of_which_no_token_is_left_is_refused(tokenizer):
    with pytest.raises(InputError, match="the tokenizer leaves nothing of its text"):
        encode_pieces(tokenizer, ["\u200b"], max_length=8)
