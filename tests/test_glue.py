"""GLUE from its original files and from the hub: what is read, refused, and said."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import huggingface_hub
import pytest
from tiny_data import raw_of

from spikeprune.config.tasks import TASKS, get_task
from spikeprune.data import cells, hub
from spikeprune.data.glue import RawData, Split
from spikeprune.errors import InputError

ROWS = {  # one header and two rows per task, as the original files have them
    "cola": (None, ["gj04\t1\t\tThe cat sat.", 'gj04\t0\t*\tCat "the sat.']),
    "sst2": ("sentence\tlabel", ["a fine film \t1", "a dull film \t0"]),
    "mrpc": (
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
        ['1\t1\t2\tHe said " yes .\tHe said yes .', "0\t3\t4\tA b .\tC d ."],
    ),
    "qqp": (
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
        ["0\t1\t2\tWho ?\tWho is it ?\t1", "1\t3\t4\tA ?\tB ?\t0"],
    ),
    "stsb": (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
        ["0\tm\tf\t2012\t1\tn\tn\tA plane .\tAn air plane .\t5.000", "1\tm\tf\t2012\t1\tn\tn\tA man .\tA cat .\t0.4"],
    ),
    "mnli": (
        "index\tgenre\tsentence1\tsentence2\tlabel1\tgold_label",
        [
            "0\tfiction\tHe ran .\tHe moved .\tentailment\tentailment",
            "1\ttravel\tHe ran .\tHe sat .\tneutral\tcontradiction",
        ],
    ),
    "qnli": (
        "index\tquestion\tsentence\tlabel",
        ["0\tWhen ?\tOn Monday .\tentailment", "1\tWho ?\tA dog .\tnot_entailment"],
    ),
    "rte": ("index\tsentence1\tsentence2\tlabel", ["0\tA b .\tA .\tentailment", "1\tC d .\tE .\tnot_entailment"]),
    "wnli": ("index\tsentence1\tsentence2\tlabel", ["0\tIt broke .\tIt .\t1", "1\tIt fell .\tHe fell .\t0"]),
}
LABELS = {"stsb": [5.0, 0.4], "mnli": [0, 2], "qnli": [0, 1], "rte": [0, 1]}


def glue_dir(root: Path, name: str, *, rows: list[str] | None = None, header: str | None = None) -> Path:
    """Writes the task's files under `root`; `rows` and `header` replace those of the training file."""
    task, (usual, examples) = TASKS[name], ROWS[name]
    (root / task.folder).mkdir(parents=True, exist_ok=True)
    for split, file in task.files.items():
        head, lines = (usual, examples) if split != "train" else (header or usual, examples if rows is None else rows)
        text = "\n".join([*([head] if head else []), *lines])
        (root / task.folder / file).write_text(text + "\n" if text else "", encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def mrpc() -> RawData:
    return raw_of("mrpc")


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_reads_the_original_layout(tmp_path, name):
    raw = raw_of(name, "auto", glue_dir(tmp_path, name))
    assert raw.source == "dir" and raw.origin == str(tmp_path) and "directory" in raw.banner
    assert list(raw.splits) == ["train", *get_task(name).dev]
    for split in raw.splits.values():
        assert split.labels == LABELS.get(name, [1, 0])
        assert (split.second is not None) == get_task(name).pair
        assert all(text == text.strip() and text for text in split.first)


def test_quotes_are_ordinary_and_the_fingerprint_follows_the_text(tmp_path):
    raw = raw_of("mrpc", "dir", glue_dir(tmp_path / "a", "mrpc"))
    assert raw.splits["train"].first[0] == 'He said " yes .'
    changed = raw_of(
        "mrpc", "dir", glue_dir(tmp_path / "b", "mrpc", rows=["1\t1\t2\tHe said\tHe said yes .", *ROWS["mrpc"][1][1:]])
    )
    assert len(raw.fingerprint) == 16 and raw.fingerprint != changed.fingerprint
    assert raw.fingerprint == raw_of("mrpc", "dir", glue_dir(tmp_path / "c", "mrpc")).fingerprint


def test_known_unusable_rows_are_skipped_and_counted(tmp_path):
    rows = ["0\t1\t2\tA broken", "question ?\tB ?\t1", *ROWS["qqp"][1]]
    raw = raw_of("qqp", "dir", glue_dir(tmp_path, "qqp", rows=rows))
    assert len(raw.splits["train"]) == 2 and "2 unusable rows skipped" in raw.banner
    rows = ["0\tfiction\tHe ran .\tHe hid .\tneutral\t-", *ROWS["mnli"][1]]
    raw = raw_of("mnli", "dir", glue_dir(tmp_path, "mnli", rows=rows))
    assert len(raw.splits["train"]) == 2 and "1 unusable rows skipped" in raw.banner


@pytest.mark.parametrize(
    ("name", "rows", "header", "message"),
    [
        ("mrpc", None, "Quality\t#1 ID\t#2 ID\t#1 String\ttext", r"train\.tsv:1: no column '#2 String'"),
        ("sst2", None, "label\tsentence\tlabel", r"train\.tsv:1: the header has column 'label' more than once"),
        ("mrpc", ["1\t1\t2\tA b ."], None, r"train\.tsv:2: 4 columns where 5 are needed"),
        ("mrpc", ["1\t1\t2\tA\tB\tC"], None, r"train\.tsv:2: 6 columns"),
        ("cola", ["gj04\t1\t\tA .", "no tabs"], None, r"train\.tsv:2: 1 columns where 4"),
        ("sst2", ["a film\t2"], None, r"train\.tsv:2: label '2' is none of 0, 1"),
        ("rte", ["0\tA\tB\tentail"], None, r"label 'entail' is none of entailment, not_entailment"),
        ("stsb", ["0\tm\tf\t2\t1\tn\tn\tA\tB\t5.1"], None, r"score '5.1' is not a number from 0 to 5"),
        ("stsb", ["0\tm\tf\t2\t1\tn\tn\tA\tB\tnan"], None, r"score 'nan'"),
        ("stsb", ["0\tm\tf\t2\t1\tn\tn\tA\tB\t0_1"], None, r"score '0_1'"),
        ("sst2", ["a film\t0.5"], None, r"train\.tsv:2: label '0.5' is none of 0, 1, negative, positive"),
        ("sst2", ["a film\t"], None, r"label '' is none of"),
        ("sst2", ["a film\t1", " \t1"], None, r"train\.tsv:3: the sentence is empty"),
        ("mrpc", ["1\t1\t2\tA b .\tC\0"], None, r"train\.tsv:2: the sentence has a NUL character"),
        ("sst2", ["a film\t1", "a play\t1"], None, r"split train: all 2 examples have the same label, positive"),
        ("stsb", ["0\tm\tf\t2\t1\tn\tn\tA\tB\t2.50"], None, r"all 1 examples have the same label, 2.5"),
        ("qqp", ["0\t1\t2\tA\tB\t1\tC"], None, r"7 columns"),
        ("wnli", [], None, r"train\.tsv holds no examples"),
        ("cola", [], None, r"train\.tsv holds no examples"),
    ],
)
def test_broken_files_are_named(tmp_path, name, rows, header, message):
    with pytest.raises(InputError, match=message) as error:
        raw_of(name, "dir", glue_dir(tmp_path, name, rows=rows, header=header))
    assert "\n" not in str(error.value)


def test_missing_places_and_contradictions_are_named(tmp_path):
    glue_dir(tmp_path, "mrpc")
    (tmp_path / "MRPC" / "dev.tsv").unlink()
    for message, source, directory in (
        ("not a directory", "dir", tmp_path / "nowhere"),
        ("no directory RTE", "dir", tmp_path),
        ("needs data.dir", "dir", None),
        ("drop one of the two", "embedded", tmp_path),
        ("did you mean hub", "hubb", None),
    ):
        with pytest.raises(InputError, match=message):
            raw_of("rte", source, directory)
    with pytest.raises(InputError, match=r"dev\.tsv is missing"):
        raw_of("mrpc", "dir", tmp_path)
    (tmp_path / "MRPC" / "dev.tsv").write_bytes(b"Quality\xff\n")
    with pytest.raises(InputError, match="not UTF-8"):
        raw_of("mrpc", "dir", tmp_path)
    with pytest.raises(InputError, match="train_limit"):
        raw_of("mrpc", train_limit=0)


def test_train_limit_is_a_seeded_draw(mrpc):
    few = [raw_of("mrpc", train_limit=20).splits["train"].first for _ in range(2)]
    assert few[0] == few[1] and len(few[0]) == 20 and set(few[0]) <= set(mrpc.splits["train"].first)
    assert few[0] != mrpc.splits["train"].first[:20]


# -- hub --------------------------------------------------------------------------------------------------------------


def hub_directory(root: Path, splits: dict[str, Split], label=None) -> Path:
    """A dataset as the hub stores GLUE: a README that names one config per task, and a parquet file per split.
    `label`: the type of that column."""
    import datasets

    lines = ["---", "configs:", "- config_name: rte", "  data_files:"]
    for name, split in splits.items():
        columns = {"sentence1": split.first, "sentence2": split.second, "label": split.labels}
        made = datasets.Dataset.from_dict(columns)
        (made.cast_column("label", label) if label else made).to_parquet(root / f"{name}.parquet")
        lines += [f"  - split: {name}", f"    path: {name}.parquet"]
    (root / "README.md").write_text("\n".join([*lines, "---", ""]))
    return root


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_hub_path_reads_what_datasets_loads(tmp_path, hub_cache):
    embedded = raw_of("rte")
    raw = raw_of("rte", "hub", hub=str(hub_directory(tmp_path, embedded.splits)))
    assert raw.source == "hub" and raw.splits == embedded.splits and raw.fingerprint == embedded.fingerprint
    assert raw_of("rte", "auto", hub=str(tmp_path)).source == "hub"


def test_hub_data_that_does_not_fit_is_an_error_and_auto_does_not_hide_it(tmp_path, hub_cache):
    wrong = {name: Split(["a"], ["b"], [7]) for name in ("train", "validation")}
    with pytest.raises(InputError, match="row 0, column 'label': label 7 is not in 0 to 1"):
        raw_of("rte", "auto", hub=str(hub_directory(tmp_path, wrong)), generated=True)
    with pytest.raises(InputError, match="cannot be read"):
        raw_of("mrpc", "auto", hub=str(tmp_path), generated=True)  # no such config
    (tmp_path / "damaged").mkdir()
    damaged = hub_directory(tmp_path / "damaged", wrong)
    (damaged / "train.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match="cannot be read"):
        raw_of("rte", "auto", hub=str(damaged), generated=True)


@pytest.mark.parametrize(
    ("sentence", "labels", "message"),
    [
        (None, [0, 1], "row 1, column 'sentence2': the sentence is missing"),
        ("", [0, 1], "row 1, column 'sentence2': the sentence is empty"),
        ("a", [0, None], "row 1, column 'label': the label is missing"),
        ("a", [0.0, 0.5], "row 1, column 'label': label 0.5 is no class index"),
        ("a", [1, -1], "row 1, column 'label': label -1 marks a row without a label"),
        ("a", [True, False], "row 0, column 'label': label True is no class index"),
        ("a", ["entailment", "maybe"], "label 'maybe' is none of entailment, not_entailment"),
        ("a", [1, 1], "all 2 examples have the same label, not_entailment"),
    ],
)
def test_hub_rows_are_refused_by_split_row_and_column(tmp_path, hub_cache, sentence, labels, message):
    sound = Split(["a", "b"], ["c", "d"], [type(labels[0])(0), type(labels[0])(1)])
    if isinstance(labels[0], str):
        sound = Split(["a", "b"], ["c", "d"], ["entailment", "not_entailment"])
    bad = Split(["a", "b"], ["c", sentence], labels)
    splits = {"train": bad, "validation": sound}
    with pytest.raises(InputError, match=f"split train.*{message}") as error:
        raw_of("rte", "hub", hub=str(hub_directory(tmp_path, splits)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("labels", "names", "wanted", "said"),
    [
        (["Not_Entailment", "ENTAILMENT"], None, [1, 0], ""),
        ([0.0, 1.0], None, [0, 1], ""),
        ([0, 1], ["not_entailment", "Entailment"], [1, 0], ""),
        ([0, 1], ["yes", "no"], [0, 1], "label names yes, no are taken in this order for entailment, not_entailment"),
    ],
)
def test_hub_labels_go_by_their_names(tmp_path, hub_cache, labels, names, wanted, said):
    import datasets

    split = Split(["a", "b"], ["c", "d"], labels)
    label = datasets.ClassLabel(names=names) if names else None
    raw = raw_of("rte", "hub", hub=str(hub_directory(tmp_path, {"train": split, "validation": split}, label)))
    assert raw.splits["train"].labels == wanted and all(type(found) is int for found in raw.splits["train"].labels)
    assert said in raw.banner and ("taken" in raw.banner) == bool(said)


def test_an_unlabelled_row_beside_label_names_is_refused(tmp_path, hub_cache):
    import datasets

    split, label = Split(["a", "b"], ["c", "d"], [1, -1]), datasets.ClassLabel(names=["not_entailment", "entailment"])
    with pytest.raises(InputError, match="row 1, column 'label': label -1 marks a row without a label"):
        raw_of("rte", "hub", hub=str(hub_directory(tmp_path, {"train": split, "validation": split}, label)))


@pytest.mark.parametrize("value", [float("inf"), 2**70, [1], 1e300, "1", "٣", b"1", 1.5, True])
def test_what_is_no_label_is_one_sentence(value):
    for name in ("rte", "stsb"):
        if (name, value) in (("stsb", "1"), ("stsb", 1.5)):
            assert cells.label(get_task(name), value) == float(value)
        else:
            with pytest.raises(ValueError, match=r"^(label|score) .* is (no|not|none) "):
                cells.label(get_task(name), value)


def test_hub_label_names_that_are_the_tasks_in_part_are_refused(tmp_path, hub_cache):
    import datasets

    split = Split(["a", "b"], ["c", "d"], [0, 1])
    label = datasets.ClassLabel(names=["entailment", "no"])
    with pytest.raises(InputError, match="the label names entailment, no are not those of the task"):
        raw_of("rte", "hub", hub=str(hub_directory(tmp_path, {"train": split, "validation": split}, label)))


def test_without_a_network_hub_fails_soon_and_auto_prints_its_source(monkeypatch, hub_cache):
    def refuse(*args, **kwargs):
        raise OSError("network is unreachable")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "create_connection", refuse)
    start = time.monotonic()
    with pytest.raises(hub.HubUnavailable, match="data.source=embedded"):
        raw_of("rte", "hub", hub="no-such-owner/no-such-data")
    with pytest.raises(hub.HubUnavailable, match=r"data\.dir=.* data\.hub.* data\.source=embedded") as error:
        raw_of("rte", "auto", hub="no-such-owner/no-such-data")
    assert "\n" not in str(error.value)
    raw = raw_of("rte", "auto", hub="no-such-owner/no-such-data", generated=True)
    assert raw.source == "embedded" and "NOT GLUE scores" in raw.banner
    assert time.monotonic() - start < 20


def test_the_cache_is_read_without_a_network(monkeypatch, tmp_path, hub_cache):
    embedded = raw_of("rte")
    (tmp_path / "glue").mkdir()
    raw_of("rte", "hub", hub=str(hub_directory(tmp_path / "glue", embedded.splits)))
    (tmp_path / "cache" / "glue").rename(tmp_path / "cache" / "some-owner___glue")  # as if it came from the hub
    monkeypatch.setattr(hub, "reachable", lambda: False)
    raw = raw_of("rte", "auto", hub="some-owner/glue")
    assert raw.source == "hub" and raw.splits == embedded.splits
    assert (
        raw_of("mrpc", "auto", hub="some-owner/glue", generated=True).source == "embedded"
    )  # cached, but not this task


def test_a_silent_network_is_given_up(monkeypatch):
    monkeypatch.setattr(hub, "_answers", lambda url, seconds: time.sleep(5) or True)
    start = time.monotonic()
    assert not hub.reachable(seconds=0.2) and time.monotonic() - start < 2
