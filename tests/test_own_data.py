"""A user's own data: what files and data sets are read to, what their labels are taken for, and what is refused."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import datasets
import pytest
import sklearn.metrics
import torch
from micro import GLUE, micro
from own import COLUMNS, MOODS, write_reviews, write_scores

from spikeprune.config.load import load
from spikeprune.config.tasks import TRAIN, VALIDATION, custom_task, get_task
from spikeprune.data.batching import encode
from spikeprune.data.classes import class_weights, infer_classes
from spikeprune.data.description import ALIKE, classes, cut, seen, unscored
from spikeprune.data.own import Columns, cut_off, load_own
from spikeprune.data.raw import RawData, Split, held_out
from spikeprune.data.rows import open_table
from spikeprune.data.split import stratified
from spikeprune.data.tokenizer import train_wordpiece
from spikeprune.errors import InputError
from spikeprune.experiment.build import networks
from spikeprune.experiment.build.modules import student_module, teacher_module
from spikeprune.experiment.context import prepare
from spikeprune.models.outputs import Outputs
from spikeprune.training.losses import hard_loss
from spikeprune.training.metrics import Counts, of_majority

REVIEWS = Columns(("review",), "mood")


def own(train: Path | None, dev: Path | None = None, columns: Columns = REVIEWS, **changes) -> RawData:
    options = {"hub": "no/such", "metrics": [], "seed": 0, "train_limit": None, **changes}
    files = [None if file is None else str(file) for file in (train, dev)]
    return load_own(train_file=files[0], dev_file=files[1], columns=columns, **options)


# -------------------------------------------------------------------------------------------------------------- reading


def test_a_csv_with_all_that_a_cell_may_hold(tmp_path) -> None:
    raw = own(write_reviews(tmp_path / "reviews.csv"), write_reviews(tmp_path / "dev.csv", 30, seed=1))
    assert raw.task.labels == tuple(sorted(MOODS)) and raw.task.metrics == ("accuracy", "macro_f1")
    assert [len(raw.splits[name]) for name in (TRAIN, VALIDATION)] == [120, 30]
    for text, label in zip(raw.splits[TRAIN].first, raw.splits[TRAIN].labels, strict=True):
        assert text.startswith('"') and f'",\n{MOODS[raw.task.labels[label]]}, really' in text
    assert raw.source == "file" and "reviews.csv and " in raw.banner
    assert pickle.loads(pickle.dumps(raw.task)) == raw.task  # as it goes between processes


def test_every_format_is_the_same_data(tmp_path) -> None:
    """One line of text each, since a TSV holds no more."""
    rows = [(f"{word} film {i}", mood) for i in range(20) for word, mood in (("good", "up"), ("bad", "down"))]
    texts, labels = zip(*rows, strict=True)
    table = datasets.Dataset.from_dict({"review": texts, "mood": labels})
    table.to_parquet(tmp_path / "a.parquet")
    table.to_json(tmp_path / "a.jsonl")
    table.to_csv(tmp_path / "a.csv", index=False)
    (tmp_path / "a.tsv").write_text("review\tmood\n" + "".join(f"{text}\t{label}\r\n" for text, label in rows))
    found = [own(tmp_path / f"a.{kind}") for kind in ("csv", "tsv", "jsonl", "parquet")]
    assert len({raw.fingerprint for raw in found}) == 1
    assert own(tmp_path / "a.csv", seed=1).fingerprint != found[0].fingerprint  # another dev split


def test_rows_are_read_one_at_a_time(tmp_path) -> None:
    """A row behind the one that was asked for is not looked at."""
    for name, text in (("a.csv", 'x\n1\n"open'), ("a.tsv", "x\n1\n2\t3\n"), ("a.jsonl", '{"x": 1}\n{')):
        (tmp_path / name).write_text(text)
        rows = open_table(tmp_path / name).rows
        assert next(rows)[1]["x"] in ("1", 1)
        with pytest.raises(InputError):
            next(rows)


def test_a_regression_of_pairs(tmp_path) -> None:
    raw = own(write_scores(tmp_path / "near.jsonl"), columns=Columns(("a", "b"), "near"))
    assert raw.task.regression and raw.task.pair and raw.task.main == ("pearson",)
    assert set(raw.splits[TRAIN].labels) <= {0.5, 1.5, 2.5}


def test_a_hub_data_set_names_its_classes(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    kind = datasets.ClassLabel(names=["up", "down"])  # in no order of the alphabet
    (tmp_path / "hub").mkdir()
    for split, size in (("train", 12), ("validation", 4)):
        columns = {"review": [f"film {i}" for i in range(size)], "mood": [i % 2 for i in range(size)]}
        table = datasets.Dataset.from_dict(columns).cast_column("mood", kind)
        table.to_parquet(tmp_path / "hub" / f"{split}.parquet")
    raw = own(None, hub=str(tmp_path / "hub"))
    assert raw.task.labels == ("up", "down") and raw.source == "hub" and len(raw.splits[VALIDATION]) == 4
    with pytest.raises(InputError, match=r"split train: no column 'text'; it has review, mood"):
        own(None, hub=str(tmp_path / "hub"), columns=Columns(("text",), "mood"))


# --------------------------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("labels", "metrics", "found"),
    [
        (["b", "a", "B"], [], ("B", "a", "b")),
        (["10", "9", "2"], [], ("2", "9", "10")),  # whole numbers in their order
        ([True, False, True], [], ("false", "true")),
        (["007", "7"], [], ("007", "7")),
        (["1.0", "2.0", "2"], [], None),  # a point makes numbers
        ([1.0, 2.0, 2], ["accuracy"], ("1", "2")),
        (["3", "4", "4"], ["pearson"], None),
        ([0.5, 1, 2], [], None),
        ([str(i) for i in range(60)] * 3, ["accuracy"], tuple(str(i) for i in range(60))),
    ],
)
def test_what_labels_are(labels, metrics, found) -> None:
    spelt = ["true" if label is True else "false" if label is False else label for label in labels]
    assert infer_classes(spelt, metrics, str) == found


@pytest.mark.parametrize(
    ("labels", "metrics", "message"),
    [
        (["0.5", "n/a", "1"], [], "1: label 'n/a' is no number, as the others are"),
        (["1", "x"], ["pearson"], "1: label 'x' is no number, as the others are"),
        (["a", "x"], ["pearson"], "0: label 'a' is no number, but data.metrics has pearson, of numbers"),
        (["0,5", "1,25"], [], "0: label '0,5' has a comma, as all the others; write numbers with a point"),
        (["1", "0.5"], ["accuracy"], "1: label '0.5' is a number and no class, but data.metrics has accuracy"),
        (
            [str(i) for i in range(60)] * 3,
            [],
            "60 different whole numbers may be classes or the numbers of a regression",
        ),
        ([f"text {i}" for i in range(30)], [], "30 different labels in 30 examples are no classes"),
    ],
)
def test_labels_that_tell_nothing_are_refused(labels, metrics, message) -> None:
    with pytest.raises(InputError, match=message):
        infer_classes(labels, metrics, str)


# -------------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "revue,mood\nx,a\n", r"a\.csv: no column 'review'; it has revue, mood \(did you mean revue\?\)"),
        ("a.csv", '"a\nb",mood\nx,a\n', r"a\.csv: no column 'review'; it has a b, mood"),
        ("a.csv", "review,mood,mood\nx,a,b\n", r"a\.csv: column 'mood' is there twice"),
        ("a.csv", "", r"a\.csv: is empty; its first line must name the columns"),
        ("a.csv", "review,mood\n", r"a\.csv: holds no examples"),
        ("a.csv", "review,mood\nx,a\ny,b,c\n", r"a\.csv:3: 3 columns where the header has 2"),
        ("a.csv", 'review,mood\n"x\ny",a\nz\n', r"a\.csv:4: 1 columns where the header has 2"),
        ("a.csv", 'review,mood\nx,a\n"y,b\n', r"a\.csv:3: is no CSV \(unexpected end of data\)"),
        ("a.csv", "review,mood\nx,a\n\ny,b\n", r"a\.csv:3: an empty line"),
        (
            "a.csv",
            "review;mood\nx;a\n",
            r"no column 'review'; it has review;mood.*; if ';' separates its columns, save",
        ),
        ("a.csv", 'review,mood\nx,a\n""\n', r"a\.csv:3: 1 columns where the header has 2"),
        ("a.json", '[{"review": "x", "mood": "a"}]', r"a\.json: is one JSON array; write one JSON object a line"),
        ("a.csv", "review,mood\n ,a\n", r"a\.csv:2: column 'review': the sentence is empty"),
        ("a.csv", "review,mood\nx,\n", r"a\.csv:2: the label is missing"),
        ("a.csv", "review,mood\nx,a\ny,b\n", r"too few different training examples to cut a dev split off; give one"),
        ("a.csv", "review,mood\nx,a\ny,a\n", r"all \d+ examples have the same label, a"),
        ("a.csv", b"review,mood\nx,a\n\xff,b\n", r"a\.csv:3: is not UTF-8 text"),
        ("a.tsv", "review\tmood\nx\ta\nb\n", r"a\.tsv:3: 1 columns where the header has 2"),
        ("a.jsonl", "", r"a\.jsonl: is empty"),
        ("a.jsonl", '{"review": "x", "mood": "a"}\n{"review": "x"}\n', r"a\.jsonl:2: the label is missing"),
        (
            "a.jsonl",
            '{"review": "x", "mood": "a"}\n{"review": 3, "mood": "a"}',
            r"jsonl:2: column 'review': 3 is no",
        ),
        ("a.jsonl", '{"review": "x", "mood": [1]}', r"a\.jsonl:1: label \[1\] is neither text nor a finite number"),
        ("a.jsonl", '{"review": "x", "mood": "a"}\n[1]\n', r"a\.jsonl:2: is damaged \(no JSON object\)"),
        ("a.parquet", "PAR1 and no more", r"a\.parquet: is no parquet file"),
        ("a.xlsx", "x", r"a\.xlsx: is of no kind that is read; give one of \.csv, \.tsv"),
    ],
)
def test_bad_files_are_one_sentence_with_file_and_line(tmp_path, name, text, message, capfd) -> None:
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message) as error:
        own(tmp_path / name)
    assert "\n" not in str(error.value) and capfd.readouterr().err == ""


def test_a_label_that_training_has_not_is_refused_in_dev(tmp_path) -> None:
    train = write_reviews(tmp_path / "train.csv")
    (tmp_path / "dev.csv").write_text("review,mood\nx,neutral\ny,other\n")
    with pytest.raises(InputError, match=r"dev\.csv:3: label 'other' is none of .*neutral"):
        own(train, tmp_path / "dev.csv")
    known = custom_task(("review",), "mood", ("neutral", "plain"))
    with pytest.raises(InputError, match=r"train\.csv:2: label .* is none of neutral, plain"):
        own(train, known=known)
    with pytest.raises(InputError, match=r"missing\.csv: is missing"):
        own(tmp_path / "missing.csv")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["task=custom"], "task = custom: needs data.train_file, or data.source=hub with data.hub"),
        (["task=custom", "data.train_file=a.csv"], "task = custom: needs data.text"),
        ([*COLUMNS, "data.train_file=a.csv", "data.text=[a,b,c]"], "the two columns of a pair, not ['a', 'b', 'c']"),
        ([*COLUMNS, "data.train_file=a.csv", "data.label=review"], "data.label = review: is a column of data.text too"),
        ([*COLUMNS, "data.source=hub", "data.dev_file=b.csv"], "data.dev_file = b.csv: is not read with data.source"),
        ([*COLUMNS, "data.source=embedded"], "data.source = embedded: is for GLUE"),
        (["task=mrpc", "data.text=[a]"], "data.text = ['a']: is for task=custom, not for mrpc"),
        ([*COLUMNS, "data.train_file=a.csv", "data.metrics=[acuracy]"], "unknown acuracy; choose from accuracy"),
        ([*COLUMNS, "data.train_file=a.csv", "data.metrics=[f1,pearson]"], "must be of one kind"),
        ([*COLUMNS, "data.train_file=a.csv", "data.class_weights=[1,0]"], "data.class_weights = [1, 0]: must be none"),
        (["task=stsb", "data.class_weights=balanced"], "data.class_weights = balanced: stsb is a regression"),
    ],
)
def test_keys_that_do_not_go_together(given, message) -> None:
    with pytest.raises(InputError) as error:
        load(GLUE, given)
    assert message in str(error.value)


def test_the_run_directory_is_named_after_the_data(tmp_path) -> None:
    (tmp_path / "reviews").mkdir()
    for file, name in (("my reviews.csv", "my-reviews"), ("reviews/train.csv", "reviews")):
        config = load(GLUE, [*COLUMNS, f"data.train_file={tmp_path / file}", "preset=minilm"])
        assert config.run.dir == f"runs/{name}-minilm-s0"
    assert load(GLUE, [*COLUMNS, "data.source=hub", "data.hub=me/moods"]).run.dir == "runs/moods-tiny-s0"


# ---------------------------------------------------------------------------------------------------- split and weights


@pytest.mark.parametrize("labels", [[0] * 70 + [1] * 20 + [2] * 2 + [3], [i / 7 for i in range(93)]])
def test_the_split_has_every_label_in_its_share(labels) -> None:
    kept, held = stratified(labels, 0.1, 3, range(93))
    assert sorted(kept + held) == list(range(93)) and (kept, held) == stratified(labels, 0.1, 3, range(93))
    assert held != stratified(labels, 0.1, 4, range(93))[1]
    if isinstance(labels[0], int):
        assert Counter(labels[i] for i in held) == {0: 7, 1: 2, 2: 1}  # of one example none
    else:
        assert len(held) == 9 and max(b - a for a, b in zip(held, held[1:], strict=False)) < 21
    kept, held = stratified(labels * 2, 0.1, 3, [*range(93), *range(93)])
    assert {i % 93 for i in held}.isdisjoint(i % 93 for i in kept) and sorted(kept + held) == list(range(186))
    assert held[: len(held) // 2] == stratified(labels, 0.1, 3, range(93))[1]


def test_no_text_is_on_both_sides_of_a_cut() -> None:
    first, labels = [f"text {i % 30}" for i in range(90)], [i % 2 for i in range(90)]
    for second, distinct in ((None, 30), ([str(i % 45) for i in range(90)], 90)):
        split = Split(first, second, labels)
        assert len(set(split.texts())) == distinct
        for parts in (cut_off(split, seed=0)[0], held_out(split, 0.2, 0)):
            train, dev = parts.values()
            assert len(train) + len(dev) == 90 and set(train.texts()).isdisjoint(dev.texts())


def test_balanced_weights_make_every_class_count_the_same() -> None:
    task, labels = custom_task(("x",), "y", ("a", "b", "c")), [0] * 6 + [1] * 3
    weights = class_weights("balanced", task, labels)
    assert weights == [0.75, 1.5, 1.0] and class_weights("none", task, labels) is None
    logits = torch.zeros(9, 3)
    loss = hard_loss(logits, torch.tensor(labels), regression=False, weights=torch.tensor(weights))
    assert loss[:6].sum() == pytest.approx(loss[6:].sum()) and loss.mean() == pytest.approx(torch.tensor(3.0).log())
    with pytest.raises(InputError, match=r"must be a weight for each class, of which there are 3: a, b, c"):
        class_weights([1, 2], task, labels)
    with pytest.raises(InputError, match="the labels are numbers"):
        class_weights("balanced", get_task("stsb"), [0.5])


def test_class_weights_act_on_the_hard_loss_of_teacher_and_student(tmp_path) -> None:
    write_reviews(tmp_path / "reviews.csv")
    given = [*micro(tmp_path / "run"), "data.source=auto", *COLUMNS, f"data.train_file={tmp_path / 'reviews.csv'}"]
    context = prepare(load(GLUE, [*given, "data.class_weights=[1,2,4]"]))
    module = teacher_module(context, networks.teacher(context).eval())
    batch = context.data.fixed_batches(1, 8, seed=0)[0]
    logits, weights = module.infer(batch).logits, torch.tensor([1.0, 2.0, 4.0])[batch["labels"]]
    wanted = (weights * hard_loss(logits, batch["labels"], regression=False)).mean()
    assert (
        module.loss_terms(batch)["loss"].item() == pytest.approx(wanted.item())
        and "class_weights" not in module.state_dict()
    )
    student = networks.student(context, module.teacher, context.data.calibration_batches(8, seed=0))
    objective = student_module(context, "finetune", student, module.teacher).objective
    assert objective.hard(batch, Outputs(logits)).mean().item() == pytest.approx(wanted.item())


def test_metrics_of_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    labels, answers = (torch.randint(0, 4, (50,), generator=generator) for _ in range(2))
    metric = Counts(("macro_f1",), classes=5)  # one that never occurs
    metric.update(answers, labels)
    assert metric.compute()["macro_f1"] == pytest.approx(sklearn.metrics.f1_score(labels, answers, average="macro"))
    assert of_majority("accuracy", [0, 0, 1], 2) == pytest.approx(2 / 3)
    assert of_majority("macro_f1", [0, 0, 1], 2) == pytest.approx(0.4) and of_majority("matthews", [0, 0, 1], 2) == 0


def test_imbalance_is_told() -> None:
    line = classes([0] * 6 + [1] * 2, custom_task(("x",), "y", ("rare", "usual")))
    assert line == "classes of 8 training examples: rare 6 (75.0%), usual 2 (25.0%); the largest 3.0 × the smallest"
    skewed, names = [0] * 9 + [1] * 2, (("x",), "y", ("usual", "rare"))
    assert classes(skewed, custom_task(*names)).endswith(f"\n{ALIKE}")
    assert ALIKE not in classes(skewed, custom_task(*names, ("macro_f1",)))


def test_texts_of_train_in_a_dev_file_are_told(tmp_path) -> None:
    (tmp_path / "a.csv").write_text("review,mood\n" + "".join(f"{i % 12},{'ab'[i % 2]}\n" for i in range(60)))
    (tmp_path / "dev.csv").write_text("review,mood\n" + "".join(f"{i},{'ab'[i % 2]}\n" for i in range(8, 20)))
    assert "4 of 12 texts of validation are in train too" in seen(own(tmp_path / "a.csv", tmp_path / "dev.csv"))[0]
    assert not seen(own(tmp_path / "a.csv"))  # its cut keeps copies together


def test_a_class_that_is_not_in_dev_is_told(tmp_path) -> None:
    (tmp_path / "a.csv").write_text("review,mood\n" + "".join(f"{i},{'abc'[i % 3]}\n" for i in range(60)))
    (tmp_path / "dev.csv").write_text("review,mood\n" + "".join(f"x {i},{'ab'[i % 2]}\n" for i in range(12)))
    assert unscored(own(tmp_path / "a.csv", tmp_path / "dev.csv")) == [
        "validation has no example of c: no score tells of it"
    ]
    assert unscored(own(tmp_path / "a.csv")) == []


def test_the_share_of_texts_that_are_cut() -> None:
    """A text of as many tokens as there is room for is whole."""
    tokenizer = train_wordpiece(["a b c"], vocab_size=100)
    split = encode(tokenizer, ["a b", "a b c", "a b c a"], max_length=5)
    assert split.lengths.tolist() == [4, 5, 5] and split.truncated == 1 and cut("train", split) == "33.3% of train"
