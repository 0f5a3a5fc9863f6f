"""Batches: padding, order, shares of processes, and a loader that resumes where it was."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_data import glue, raw_of

from spikeprune.config.schema import Config, Stage
from spikeprune.data.batching import BatchLoader, TaskData, encode
from spikeprune.data.raw import RawData
from spikeprune.data.tokenizer import train_wordpiece
from spikeprune.errors import InputError
from spikeprune.experiment.build import modules


@pytest.fixture(scope="module")
def qnli() -> RawData:
    """Pairs of several lengths; those of the generated MRPC have one."""
    return raw_of("qnli")


@pytest.fixture(scope="module")
def tokenizer(qnli):
    return train_wordpiece(qnli.splits["train"].first + qnli.splits["train"].second, vocab_size=400)


# -- batches ----------------------------------------------------------------------------------------------------------


def test_batches_are_padded_like_the_tokenizer_pads(qnli, tokenizer):
    split = qnli.splits["train"]
    batch = glue(qnli, tokenizer).encoded["train"].batch([5, 0, 7])
    rows = [5, 0, 7]
    text = [split.first[i] for i in rows], [split.second[i] for i in rows]
    want = tokenizer(*text, padding=True, pad_to_multiple_of=8, return_tensors="pt")
    assert set(batch) == {"input_ids", "attention_mask", "token_type_ids", "labels"}
    for key, value in want.items():
        assert torch.equal(batch[key], value), key
    assert batch["labels"].tolist() == [split.labels[i] for i in rows] and batch["labels"].dtype == torch.long
    short = encode(tokenizer, *text, max_length=13).batch([0, 1, 2])
    assert short["input_ids"].shape == (3, 13) and "labels" not in short


def test_a_text_of_which_no_token_is_left_is_refused(tokenizer):
    nothing = "\u200b\u200b"  # zero-width spaces, which the normalizer drops
    with pytest.raises(InputError, match=r"split x, example 1: the tokenizer leaves nothing of"):
        encode(tokenizer, ["a dog", nothing], max_length=8, place="split x, example {}".format)
    with pytest.raises(InputError, match=r"example 0: the tokenizer leaves nothing of"):
        encode(tokenizer, [nothing], [""], max_length=8)
    assert len(encode(tokenizer, ["a dog"], [""], max_length=8)) == 1  # as a few of QQP's pairs


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


def test_order_is_a_function_of_seed_and_epoch(qnli, tokenizer):
    one, two = glue(qnli, tokenizer).train_dataloader(), glue(qnli, tokenizer).train_dataloader()
    other = glue(qnli, tokenizer, seed=4).train_dataloader()
    assert rows_of(one, 2) == rows_of(two, 2) != rows_of(one, 3)
    assert rows_of(one, 2) != rows_of(other, 2)
    assert sorted(sum(rows_of(one, 2), [])) == list(range(203))
    assert len(rows_of(one, 0)) == len(one) == 13 and max(map(len, rows_of(one, 0))) <= 16
    spans = sorted((min(found), max(found)) for found in (one.data.lengths[rows].tolist() for rows in rows_of(one, 0)))
    assert all(before[1] <= after[0] for before, after in pairwise(spans))  # a batch is of sentences of like lengths


def of_process(monkeypatch, rank: int, world: int, data, **options) -> BatchLoader:
    monkeypatch.setattr("spikeprune.distributed.rank", lambda: rank)
    monkeypatch.setattr("spikeprune.distributed.world", lambda: world)
    return BatchLoader(data, **options)


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_each_training_batch(monkeypatch, qnli, tokenizer, world):
    """Together they see what one process sees, batch by batch, and their weighted means are the batch's."""
    data, options = glue(qnli, tokenizer).encoded["train"], {"batch_size": 16, "seed": 1, "shuffle": True}
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
def test_processes_share_a_dev_split_without_duplicates(monkeypatch, qnli, tokenizer, world, batch_size):
    data = glue(qnli, tokenizer).encoded["train"]
    shares = []
    for rank in range(world):
        loader = of_process(monkeypatch, rank, world, data, batch_size=batch_size)
        shares.append([rows for batch in loader.batches(0) for rows in batch.tolist()])
        batches = list(loader)
        assert len(batches) == len(loader) == min(-(-203 // (world * batch_size)), 203 // world)
        assert all(0 < len(batch["labels"]) <= max(batch_size, 2) for batch in batches)
    assert sorted(sum(shares, [])) == list(range(203))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_too_few_examples_for_all_processes(monkeypatch, qnli, tokenizer):
    data = glue(qnli, tokenizer).encoded["train"]
    for count, options in ((203, {"shuffle": True, "batch_size": 300}), (101, {"shuffle": True, "batch_size": 202})):
        of_process(monkeypatch, 0, count, data, **options)
        with pytest.raises(InputError, match=f"{count} examples cannot be shared by {count + 1} processes"):
            of_process(monkeypatch, 0, count + 1, data, **options)


def test_calibration_and_fixed_batches(qnli, tokenizer):
    data = glue(qnli, tokenizer)
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


def fit(data: TaskData, root: Path, *, checkpoint: str | None = None) -> list[tuple[int, int]]:
    module = Recorder()
    saver = ModelCheckpoint(dirpath=root, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=3, callbacks=[saver], logger=False, use_distributed_sampler=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=1,
    )  # fmt: skip
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=False)
    return module.seen


@pytest.mark.filterwarnings("ignore")
def test_resumed_run_sees_the_batches_of_the_uninterrupted_run(tmp_path, qnli, tokenizer):
    data = glue(qnli, tokenizer, batch_size=32)  # 7 batches an epoch
    whole = fit(data, tmp_path / "whole")
    assert len(whole) == 21 and len({batch for _, batch in whole}) == 21
    for step in (1, 3, 6, 7, 8, 13, 14, 15, 20):
        checkpoint = str(tmp_path / "whole" / f"step={step}.ckpt")
        assert fit(data, tmp_path / "rest", checkpoint=checkpoint) == whole[step:], f"resumed at step {step}"


def test_loader_state(qnli, tokenizer):
    loader = glue(qnli, tokenizer).train_dataloader()
    iter(loader), iter(loader)  # asking twice without taking a batch is no epoch
    first = list(loader)
    assert loader.state_dict() == {"epoch": 1, "yielded": 0, "length": 13}
    second = list(loader)
    assert loader.epoch == 1 and len(first) == len(second) == 13
    assert [batch["labels"].tolist() for batch in first] != [batch["labels"].tolist() for batch in second]
    rest = glue(qnli, tokenizer).train_dataloader()
    rest.load_state_dict({"epoch": 1, "yielded": 10, "length": 13})
    iter(rest)
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(rest, second[10:], strict=True))
    with pytest.raises(InputError, match="epoch of 9 batches"):
        rest.load_state_dict({"epoch": 1, "yielded": 4, "length": 9})
    with pytest.raises(InputError, match="batch size"):
        glue(qnli, tokenizer, batch_size=0).train_dataloader()


def test_what_a_budget_is_measured_on_are_training_sentences(qnli, tokenizer):
    data = glue(qnli, tokenizer)
    size = len(data.encoded["train"])
    rows = sum((batch["input_ids"].tolist() for batch in data.sample_batches(size, 16, 0)), [])
    train = data.encoded["train"].batch(range(size))["input_ids"].tolist()

    def tokens(examples: list[list[int]]) -> list[list[int]]:
        return sorted([token for token in example if token != tokenizer.pad_token_id] for example in examples)

    assert tokens(rows) == tokens(train)


@pytest.mark.parametrize(("replayed", "multiple"), [(False, 8), (True, 16)])
def test_training_batches_of_replayed_steps_have_fewer_shapes(replayed, multiple, monkeypatch) -> None:
    monkeypatch.setattr(modules, "replays", lambda context: replayed)
    context = SimpleNamespace(config=Config(), stage=lambda name: Stage(), data=SimpleNamespace())
    assert modules.stage_data(context, "finetune").pad_to == multiple
