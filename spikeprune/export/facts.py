"""What an exporter may state about a student, and the sentences that it may check its files on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from spikeprune.config.tasks import Task
from spikeprune.data.batching import Encoded

CARD = "README.md"  # the name that the hub reads
BATCH = 64  # dev sentences of a check that are computed together


@dataclass(frozen=True)
class Teacher:
    """The checkpoint that the teacher was fine-tuned from."""

    name: str | None  # a hub name, or a directory's own; None: from random weights
    licence: str | None  # as its card or configuration states it
    on_hub: bool


@dataclass(frozen=True)
class Facts:
    """The origin of a student, and its measurements on the dev split."""

    command: str  # that makes the export
    trained: str  # a command that makes the run
    stage: str
    task: Task
    data: Mapping[str, str]  # source, origin, fingerprint and banner, as in `summary.json`
    teacher: Teacher
    dense: Mapping[str, Any]  # the teacher's record: metrics, main, cost
    record: Mapping[str, Any]  # the student's: metrics, main, cost, t_steps, heads, ffn, encoder_weights
    dev: Encoded  # the first dev split as tokens
    max_length: int  # tokens that a text is cut to

    def batches(self) -> Iterator[dict[str, Tensor]]:
        """The dev split in batches of like length, each example once; `input_ids`, `attention_mask`, `token_type_ids`
        long[B, N], and `labels`."""
        for rows in self.dev.lengths.argsort(stable=True).split(BATCH):
            yield self.dev.batch(rows.tolist())
