"""Data from directories, hub and corpus files; batches; and the loader's resume in the middle of an epoch."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import huggingface_hub
import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from spikeprune.data import hub
from spikeprune.data.corpus import CorpusData, read_corpus
from spikeprune.data.glue import GlueData, RawData, Split, load_raw
from spikeprune.data.loader import BatchLoader, encode
from spikeprune.data.tokenize import check_vocabulary, load_tokenizer, train_wordpiece
from spikeprune.errors import InputError
from spikeprune.tasks import TASKS, get_task

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


def raw_of(name: str, source: str = "embedded", directory: Path | None = None, **changes) -> RawData:
    options = dict(hub="no/such", seed=0, train_limit=None, embedded_train=203, embedded_dev=37)
    directory = None if directory is None else str(directory)
    return load_raw(task=get_task(name), source=source, directory=directory, **{**options, **changes})


@pytest.fixture(scope="module")
def mrpc() -> RawData:
    return raw_of("mrpc")


@pytest.fixture(scope="module")
def tokenizer(mrpc):
    return train_wordpiece(mrpc.splits["train"].first, vocab_size=300)


def glue(raw: RawData, tokenizer, *, batch_size: int = 16, seed: int = 3) -> GlueData:
    return GlueData(
        raw=raw, tokenizer=tokenizer, max_length=32, batch_size=batch_size, eval_batch_size=10, seed=seed
    )  # fmt: skip


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
    changed = raw_of("mrpc", "dir", glue_dir(tmp_path / "b", "mrpc", rows=["1\t1\t2\tHe said\tHe said yes ."]))
    assert len(raw.fingerprint) == 16 and raw.fingerprint != changed.fingerprint
    assert raw.fingerprint == raw_of("mrpc", "dir", glue_dir(tmp_path / "c", "mrpc")).fingerprint


def test_known_unusable_rows_are_skipped_and_counted(tmp_path):
    rows = ["0\t1\t2\tA broken", "question ?\tB ?\t1", ROWS["qqp"][1][0]]
    raw = raw_of("qqp", "dir", glue_dir(tmp_path, "qqp", rows=rows))
    assert len(raw.splits["train"]) == 1 and "2 unusable rows skipped" in raw.banner
    rows = ["0\tfiction\tHe ran .\tHe hid .\tneutral\t-", ROWS["mnli"][1][0]]
    raw = raw_of("mnli", "dir", glue_dir(tmp_path, "mnli", rows=rows))
    assert len(raw.splits["train"]) == 1 and "1 unusable rows skipped" in raw.banner


@pytest.mark.parametrize(
    ("name", "rows", "header", "message"),
    [
        ("mrpc", None, "Quality\t#1 ID\t#2 ID\t#1 String\ttext", r"train\.tsv:1: no column '#2 String'"),
        ("mrpc", ["1\t1\t2\tA b ."], None, r"train\.tsv:2: 4 columns where 5 are needed"),
        ("mrpc", ["1\t1\t2\tA\tB\tC"], None, r"train\.tsv:2: 6 columns"),
        ("cola", ["gj04\t1\t\tA .", "no tabs"], None, r"train\.tsv:2: 1 columns where 4"),
        ("sst2", ["a film\t2"], None, r"train\.tsv:2: label '2' is none of 0, 1"),
        ("rte", ["0\tA\tB\tentail"], None, r"label 'entail' is none of entailment, not_entailment"),
        ("stsb", ["0\tm\tf\t2\t1\tn\tn\tA\tB\t5.1"], None, r"score '5.1' is not a number from 0 to 5"),
        ("stsb", ["0\tm\tf\t2\t1\tn\tn\tA\tB\tnan"], None, r"score 'nan'"),
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


def hub_directory(root: Path, splits: dict[str, Split]) -> Path:
    """A dataset as the hub stores GLUE: a README that names one config per task, and a parquet file per split."""
    import datasets

    lines = ["---", "configs:", "- config_name: rte", "  data_files:"]
    for name, split in splits.items():
        columns = {"sentence1": split.first, "sentence2": split.second, "label": split.labels}
        datasets.Dataset.from_dict(columns).to_parquet(root / f"{name}.parquet")
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
    with pytest.raises(InputError, match="row 0: label 7 is not in 0 to 1"):
        raw_of("rte", "auto", hub=str(hub_directory(tmp_path, wrong)))
    with pytest.raises(InputError, match="cannot be read"):
        raw_of("mrpc", "auto", hub=str(tmp_path))  # no such config


def test_without_a_network_hub_fails_soon_and_auto_says_what_it_took(monkeypatch, hub_cache):
    def refuse(*args, **kwargs):
        raise OSError("network is unreachable")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "create_connection", refuse)
    start = time.monotonic()
    with pytest.raises(hub.HubUnavailable, match="data.source=embedded"):
        raw_of("rte", "hub", hub="no-such-owner/no-such-data")
    raw = raw_of("rte", "auto", hub="no-such-owner/no-such-data")
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
    assert raw_of("mrpc", "auto", hub="some-owner/glue").source == "embedded"  # cached, but not this task


def test_a_silent_network_is_given_up(monkeypatch):
    monkeypatch.setattr(hub, "_answers", lambda url, seconds: time.sleep(5) or True)
    start = time.monotonic()
    assert not hub.reachable(seconds=0.2) and time.monotonic() - start < 2


# -- batches ----------------------------------------------------------------------------------------------------------


def test_batches_are_padded_like_the_tokenizer_pads(mrpc, tokenizer):
    split = mrpc.splits["train"]
    batch = glue(mrpc, tokenizer).encoded["train"].batch([5, 0, 7])
    rows = [5, 0, 7]
    text = [split.first[i] for i in rows], [split.second[i] for i in rows]
    want = tokenizer(*text, padding=True, pad_to_multiple_of=8, return_tensors="pt")
    assert set(batch) == {"input_ids", "attention_mask", "token_type_ids", "labels"}
    for key, value in want.items():
        assert torch.equal(batch[key], value), key
    assert batch["labels"].tolist() == [split.labels[i] for i in rows] and batch["labels"].dtype == torch.long
    short = encode(tokenizer, *text, max_length=13).batch([0, 1, 2])
    assert short["input_ids"].shape == (3, 13) and "labels" not in short


def test_regression_and_single_sentences(tokenizer):
    assert next(iter(glue(raw_of("stsb"), tokenizer).train_dataloader()))["labels"].dtype == torch.float32
    batch = next(iter(glue(raw_of("cola"), tokenizer).train_dataloader()))
    assert not batch["token_type_ids"].any()


def test_every_dev_example_once_in_named_splits(tokenizer):
    data = glue(raw_of("mnli"), tokenizer)
    assert data.dev_names == ["validation_matched", "validation_mismatched"]
    for name, loader in zip(data.dev_names, data.val_dataloader(), strict=True):
        labels = torch.cat([batch["labels"] for batch in loader])
        assert sorted(labels.tolist()) == sorted(data.raw.splits[name].labels)
        assert len(loader) == 4  # 37 examples, at most 10 in a batch


def rows_of(loader: BatchLoader, epoch: int) -> list[list[int]]:
    return [rows.tolist() for rows in loader.batches(epoch)]


def test_order_is_a_function_of_seed_and_epoch(mrpc, tokenizer):
    one, two = glue(mrpc, tokenizer).train_dataloader(), glue(mrpc, tokenizer).train_dataloader()
    other = glue(mrpc, tokenizer, seed=4).train_dataloader()
    assert rows_of(one, 2) == rows_of(two, 2) != rows_of(one, 3)
    assert rows_of(one, 2) != rows_of(other, 2)
    assert sorted(sum(rows_of(one, 2), [])) == list(range(203))
    assert len(rows_of(one, 0)) == len(one) == 13 and max(map(len, rows_of(one, 0))) <= 16


def of_process(monkeypatch, rank: int, world: int, data, **options) -> BatchLoader:
    monkeypatch.setattr("spikeprune.ranks.rank", lambda: rank)
    monkeypatch.setattr("spikeprune.ranks.world", lambda: world)
    return BatchLoader(data, **options)


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_each_training_batch(monkeypatch, mrpc, tokenizer, world):
    """Together they see what one process sees, batch by batch, and their weighted means are the batch's."""
    data, options = glue(mrpc, tokenizer).encoded["train"], {"batch_size": 16, "seed": 1, "shuffle": True}
    alone = BatchLoader(data, **options)
    loaders = [of_process(monkeypatch, rank, world, data, **options) for rank in range(world)]
    assert [len(loader) for loader in loaders] == [len(alone)] * world
    for whole, *parts in zip(alone, *loaders, strict=True):
        sizes = [len(part["labels"]) for part in parts]
        assert sum(sizes) == len(whole["labels"]) and max(sizes) - min(sizes) <= 1
        rows = [tuple(row[row > 0].tolist()) for row in whole["input_ids"]]
        assert sorted(rows) == sorted(tuple(row[row > 0].tolist()) for p in parts for row in p["input_ids"])
        n, own = whole["attention_mask"].sum(1), [part["attention_mask"].sum(1) for part in parts]
        assert "share" not in whole
        for column, measure in enumerate((lambda n: n * 0 + 1, lambda n: n, lambda n: n * n)):
            want = [world * measure(mine).sum() / measure(n).sum() for mine in own]
            assert [p["share"][column].item() for p in parts] == pytest.approx([w.item() for w in want])
            assert sum(p["share"][column] for p in parts).item() == pytest.approx(world)
        assert all(p["share"][3].item() == pytest.approx(n.double().mean().item()) for p in parts)


@pytest.mark.parametrize(("world", "batch_size"), [(2, 16), (3, 16), (3, 1), (4, 67)])
def test_processes_share_a_dev_split_without_duplicates(monkeypatch, mrpc, tokenizer, world, batch_size):
    data = glue(mrpc, tokenizer).encoded["train"]
    shares = []
    for rank in range(world):
        loader = of_process(monkeypatch, rank, world, data, batch_size=batch_size)
        shares.append([rows for batch in loader.batches(0) for rows in batch.tolist()])
        batches = list(loader)
        assert len(batches) == len(loader) == min(-(-203 // (world * batch_size)), 203 // world)
        assert all(0 < len(batch["labels"]) <= max(batch_size, 2) for batch in batches)
    assert sorted(sum(shares, [])) == list(range(203))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_too_few_examples_for_all_processes(monkeypatch, mrpc, tokenizer):
    data = glue(mrpc, tokenizer).encoded["train"]
    for count, options in ((203, {"shuffle": True, "batch_size": 300}), (101, {"shuffle": True, "batch_size": 202})):
        of_process(monkeypatch, 0, count, data, **options)
        with pytest.raises(InputError, match=f"{count} examples cannot be shared by {count + 1} processes"):
            of_process(monkeypatch, 0, count + 1, data, **options)


def test_calibration_and_fixed_batches(mrpc, tokenizer):
    data = glue(mrpc, tokenizer)
    one, two = (data.calibration_batches(24, seed=5) for _ in range(2))
    assert len(one["labels"]) == 24 and all(torch.equal(one[key], two[key]) for key in one)
    assert len(data.calibration_batches(10_000, seed=5)["labels"]) == 203
    batches = data.fixed_batches(3, 8, seed=1)
    assert [len(batch["labels"]) for batch in batches] == [8, 8, 8]
    assert [len(batch["labels"]) for batch in data.fixed_batches(9, 100, seed=1)] == [100, 100, 3]


# -- resume -----------------------------------------------------------------------------------------------------------


class Recorder(lightning.LightningModule):
    """Notes the labels and tokens of every batch it is given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, int]] = []

    def training_step(self, batch, index):
        self.seen.append((self.global_step, hash(tuple(batch["input_ids"].flatten().tolist()))))
        return self.weight * 1.0

    def validation_step(self, batch, index, dataloader_idx=0):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(data: GlueData, root: Path, *, checkpoint: str | None = None) -> list[tuple[int, int]]:
    module = Recorder()
    saver = ModelCheckpoint(dirpath=root, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=3, callbacks=[saver], logger=False, use_distributed_sampler=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=1,
    )  # fmt: skip
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=False)
    return module.seen


@pytest.mark.filterwarnings("ignore")
def test_resumed_run_sees_the_batches_of_the_uninterrupted_run(tmp_path, mrpc, tokenizer):
    data = glue(mrpc, tokenizer, batch_size=32)  # 7 batches an epoch
    whole = fit(data, tmp_path / "whole")
    assert len(whole) == 21 and len({batch for _, batch in whole}) == 21
    for step in (1, 3, 6, 7, 8, 13, 14, 15, 20):
        checkpoint = str(tmp_path / "whole" / f"step={step}.ckpt")
        assert fit(data, tmp_path / "rest", checkpoint=checkpoint) == whole[step:], f"resumed at step {step}"


def test_loader_state(mrpc, tokenizer):
    loader = glue(mrpc, tokenizer).train_dataloader()
    iter(loader), iter(loader)  # asking twice without taking a batch is no epoch
    first = list(loader)
    assert loader.state_dict() == {"epoch": 1, "yielded": 0, "length": 13}
    second = list(loader)
    assert loader.epoch == 1 and len(first) == len(second) == 13
    assert [batch["labels"].tolist() for batch in first] != [batch["labels"].tolist() for batch in second]
    rest = glue(mrpc, tokenizer).train_dataloader()
    rest.load_state_dict({"epoch": 1, "yielded": 10, "length": 13})
    iter(rest)
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(rest, second[10:], strict=True))
    with pytest.raises(InputError, match="epoch of 9 batches"):
        rest.load_state_dict({"epoch": 1, "yielded": 4, "length": 9})
    with pytest.raises(InputError, match="batch size"):
        glue(mrpc, tokenizer, batch_size=0).train_dataloader()


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
    monkeypatch.setattr("spikeprune.data.tokenize.reachable", lambda: False)
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


# -- corpus -----------------------------------------------------------------------------------------------------------


def corpus(files, tokenizer, **changes) -> CorpusData:
    options = dict(limit=None, max_length=16, batch_size=4, seed=0)
    return CorpusData(sources=[str(file) for file in files], tokenizer=tokenizer, **{**options, **changes})


def test_corpus_drops_headings_and_cuts_paragraphs(tmp_path, tokenizer):
    text = (
        " \n = Doctors = \n \n the doctor helped the nurse . \n = = More = = \n"
        + "the pilot saw the lawyer . " * 9
        + "\n"
    )
    (tmp_path / "a.txt").write_text(text)
    assert [len(line.split()) for line in read_corpus([str(tmp_path / "a.txt")], limit=None)] == [6, 54]
    data = corpus([tmp_path / "a.txt"], tokenizer)
    lengths = data.encoded.lengths.tolist()
    assert max(lengths) <= 16 and sum(lengths) - 2 * len(lengths) == 60  # no token lost, none repeated
    batch = next(iter(data.train_dataloader()))
    assert set(batch) == {"input_ids", "attention_mask", "token_type_ids"}
    assert (batch["input_ids"][:, 0] == tokenizer.cls_token_id).all()
    assert len(corpus([tmp_path / "a.txt"], tokenizer, limit=1).encoded) == 1
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
