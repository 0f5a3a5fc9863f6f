"""A few embedded sentences of a task, their loader, and fixtures of them; not a test."""

from __future__ import annotations

from pathlib import Path

import pytest

from spikeprune.config.tasks import get_task
from spikeprune.data.batching import TaskData
from spikeprune.data.glue import load_raw
from spikeprune.data.raw import RawData
from spikeprune.data.tokenizer import train_wordpiece


def raw_of(name: str, source: str = "embedded", directory: Path | None = None, **changes) -> RawData:
    options = dict(hub="no/such", seed=0, train_limit=None, embedded_train=203, embedded_dev=37)
    directory = None if directory is None else str(directory)
    return load_raw(task=get_task(name), source=source, directory=directory, **{**options, **changes})


def glue(raw: RawData, tokenizer, *, batch_size: int = 16, seed: int = 3) -> TaskData:
    return TaskData(
        raw=raw, tokenizer=tokenizer, max_length=32, batch_size=batch_size, eval_batch_size=10, seed=seed
    )  # fmt: skip


@pytest.fixture(scope="module")
def mrpc() -> RawData:
    return raw_of("mrpc")


@pytest.fixture(scope="module")
def tokenizer(mrpc):
    return train_wordpiece(mrpc.splits["train"].first, vocab_size=300)
