"""The generated corpus: labels follow rules written here again, no bag of words finds them, a small BERT does."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from transformers import BertConfig, BertForSequenceClassification

from spikeprune.config.tasks import TASKS, Task, get_task
from spikeprune.data.batching import BatchLoader, encode
from spikeprune.data.synthetic import ADJUNCTS, BAD, GOOD, NOUNS, REASONS, RULES, VERBS, generate
from spikeprune.data.tokenizer import train_wordpiece
from spikeprune.errors import InputError
from spikeprune.training.metrics import task_metrics

SIZES = {"seed": 0, "train": 4000, "dev": 500}
CHANCE = {"mnli": 1 / 3, "stsb": 0.0}  # one half for the others; stsb: correlation
ABOVE_CHANCE = 0.12  # how much better than chance a classifier without word order or without a sentence may be
MARGIN = 0.30  # how much better than that bag of words the small teacher must be

Columns = tuple[list, "list | None", list]


@pytest.fixture(scope="module")
def corpora() -> dict[str, dict[str, Columns]]:
    return {name: generate(task, **SIZES) for name, task in TASKS.items()}


def rows(columns: Columns) -> list[tuple[str, str, float]]:
    first, second, labels = columns
    return list(zip(first, second or [""] * len(first), labels, strict=True))


# -- the rules, a second time ------------------------------------------------------------------------------------------


def cola(sentence: str, _: str) -> int:
    words = sentence.split()
    plural = words[1] in {many for _, many in NOUNS}
    return int(plural == (words[5] in {"are", "were", "seem", "look"}))


def sst2(sentence: str, _: str) -> int:
    if sentence.startswith("although"):
        main = sentence.split(" , ")[1]
    elif " but " in sentence:
        main = sentence.split(" but ")[1]
    else:
        main = sentence.split(" although ")[0]
    words = main.split()
    good, bad = any(word in GOOD for word in words), any(word in BAD for word in words)
    assert good != bad
    return int(good != ("not" in words))


def deed(sentence: str) -> tuple[str, int, str]:
    agent, verb, patient = re.search(r"the (\w+) (\w+) the (\w+)", sentence).groups()
    return agent, next(i for i, row in enumerate(VERBS) if verb in row), patient


def paraphrase(first: str, second: str) -> int:
    return int(deed(first) == deed(second))


def stsb(first: str, second: str) -> float:
    frame = r"the (\w+) saw the (\w+) (\w+) in the (\w+) (.+) \."
    return float(sum(a == b for a, b in zip(*(re.fullmatch(frame, s).groups() for s in (first, second)), strict=True)))


def mnli(premise: str, hypothesis: str) -> int:
    (person,) = re.fullmatch(r"the (\w+) \w+ a \w+ \.", hypothesis).groups()
    if f" {person} " not in premise:
        return 1
    return 2 if f" for the {person} " in premise else 0


def qnli(question: str, sentence: str) -> int:
    asked, person = re.match(r"(.+) did the (\w+)", question).groups()
    answered = any(answer in sentence for answer in ADJUNCTS[asked])
    return 0 if answered and f" {person} " in sentence else 1


def rte(premise: str, hypothesis: str) -> int:
    (seller,) = re.fullmatch(r"the (\w+) sold a \w+ \.", hypothesis).groups()
    return 0 if f" {seller} sold " in premise else 1


def wnli(premise: str, hypothesis: str) -> int:
    one, verb, two = re.match(r"the \w+ (\w+) (\w+) the (\w+)", premise).groups()
    reason = premise.split()[-2]
    she = (one, two)[dict(REASONS)[verb].index(reason)]
    return int(hypothesis == f"the {she} was {reason} .")


AGAIN = {
    "cola": cola, "sst2": sst2, "mrpc": paraphrase, "qqp": paraphrase, "stsb": stsb, "mnli": mnli, "qnli": qnli,
    "rte": rte, "wnli": wnli,
}  # fmt: skip


@pytest.mark.parametrize("name", TASKS)
def test_labels_follow_the_rule(corpora, name):
    for columns in corpora[name].values():
        for first, second, label in rows(columns):
            assert AGAIN[name](first, second) == label, (first, second)


# -- the corpus --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_splits_are_sized_balanced_and_disjoint(corpora, name):
    task, splits = get_task(name), corpora[name]
    assert list(splits) == ["train", *task.dev]
    assert [len(columns[2]) for columns in splits.values()] == [4000] + [500] * len(task.dev)
    for columns in splits.values():
        counts = Counter(columns[2])
        assert len(counts) == (6 if task.regression else task.num_labels)
        assert max(counts.values()) - min(counts.values()) <= 1
        assert (columns[1] is not None) == task.pair
    every = [(first, second) for columns in splits.values() for first, second, _ in rows(columns)]
    assert len(set(every)) == len(every)
    train, *dev = splits.values()
    for side in {"qnli": [1], "cola": [0], "sst2": [0], "mrpc": [0, 1], "qqp": [0, 1], "stsb": [0, 1]}.get(name, [0]):
        for columns in dev:
            assert not set(train[side]) & set(columns[side])


@pytest.mark.parametrize("name", TASKS)
def test_same_seed_same_sentences(name):
    task, small = get_task(name), {"train": 40, "dev": 12}
    assert generate(task, seed=1, **small) == generate(task, seed=1, **small) != generate(task, seed=2, **small)


def test_the_sentences_of_seed_zero_stay_what_they_are():
    """Results of different versions are compared on them: a change here is a change of the benchmark."""
    columns = generate(get_task("mrpc"), seed=0, train=4, dev=2)["train"]
    assert rows(columns) == [
        ("at noon the doctor employed the teacher .", "at noon the doctor employed the pilot .", 0),
        ("the farmer called the pilot this morning .", "this morning the farmer called the nurse .", 0),
        ("at noon the pilot accused the doctor .", "the pilot blamed the doctor at noon .", 1),
        ("the pilot visited the doctor in spring .", "the pilot visited the doctor in spring .", 1),
    ]


def test_impossible_sizes_are_refused():
    with pytest.raises(InputError, match=r"\[9, 2\]: 2 dev examples cannot show the 3 labels of mnli"):
        generate(get_task("mnli"), seed=0, train=9, dev=2)
    with pytest.raises(InputError, match="lower data.embedded"):
        generate(get_task("wnli"), seed=0, train=100_000, dev=2)


def test_a_task_without_a_rule_is_refused():
    with pytest.raises(InputError, match="data.source = embedded: has no sentences for mine"):
        generate(replace(get_task("sst2"), name="mine"), seed=0, train=4, dev=4)


def test_every_task_has_a_rule():
    assert list(RULES) == list(TASKS) == list(AGAIN)


# -- what a classifier can find ----------------------------------------------------------------------------------------


def bag_of_words(task: Task, splits: dict[str, Columns], sides: list[int]) -> float:
    """Dev accuracy (regression: Pearson) of a linear model on word counts, each sentence with words of its own."""

    def texts(columns: Columns) -> list[str]:
        return [" ".join(f"{side}_{word}" for side in sides for word in row[side].split()) for row in rows(columns)]

    train, dev = splits["train"], splits[task.dev_splits[0]]
    counts = CountVectorizer(token_pattern=r"\S+")
    seen, unseen = counts.fit_transform(texts(train)), counts.transform(texts(dev))
    if task.regression:
        return float(np.corrcoef(Ridge().fit(seen, train[2]).predict(unseen), dev[2])[0, 1])
    return LogisticRegression(max_iter=300).fit(seen, train[2]).score(unseen, dev[2])


@pytest.mark.parametrize("name", TASKS)
def test_no_bag_of_words_and_no_single_sentence_tells_the_label(corpora, name):
    task = get_task(name)
    for sides in [[0, 1], [0], [1]] if task.pair else [[0]]:
        score = bag_of_words(task, corpora[name], sides)
        assert abs(score - CHANCE.get(name, 0.5)) <= ABOVE_CHANCE, (sides, score)


def teach(task: Task, splits: dict[str, Columns], epochs: int, enough: float) -> float:
    """The main metric on dev of a 2-layer BERT of width 128, trained from random weights until it is `enough`."""
    train, dev = splits["train"], splits[task.dev_splits[0]]
    tokenizer = train_wordpiece(train[0] + (train[1] or []), vocab_size=4000)
    data, held = (encode(tokenizer, *columns, max_length=64) for columns in (train, dev))
    torch.manual_seed(0)
    shape = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 512}
    # BERT's usual 0.02 starts attention too flat at this width: comparing two sentences is then learnt much later.
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, initializer_range=128**-0.5, **shape)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    model = BertForSequenceClassification(config)
    loader = BatchLoader(data, batch_size=32, shuffle=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=1e-3,
        total_steps=epochs * len(loader),
        pct_start=0.1,
        anneal_strategy="linear",
        cycle_momentum=False,
    )
    for _ in range(epochs):
        for batch in loader:
            optimizer.zero_grad()
            model(**batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        found = measure(model, task, held)
        print(f"{task.name}: {found:.3f}")
        if found >= enough:
            break
    return found


@torch.no_grad()
def measure(model: BertForSequenceClassification, task: Task, held) -> float:
    metrics = task_metrics(task)
    model.eval()
    for batch in BatchLoader(held, batch_size=100):
        labels = batch.pop("labels")
        metrics.update(model(**batch).logits.argmax(-1), labels)
    model.train()
    return float(metrics.compute()["accuracy"])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "epochs"), [("mrpc", 9), ("sst2", 3)])
def test_a_small_teacher_beats_the_bag_of_words_by_30_points(corpora, name, epochs):
    task = get_task(name)
    words = bag_of_words(task, corpora[name], [0, 1])
    enough = max(0.93, words + MARGIN)
    assert teach(task, corpora[name], epochs, enough) >= enough
