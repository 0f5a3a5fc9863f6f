"""Unlabelled text for the general_kd stage, served as batches without labels."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from lightning import LightningDataModule

from spikeprune.data.batching import PAD_TO, Batch, BatchLoader, Encoded
from spikeprune.data.hub import load_splits
from spikeprune.errors import InputError


def read_corpus(sources: list[str]) -> list[str]:
    """Paragraphs (lines with text) of UTF-8 files in turn, or of one hub dataset's "text" column (`owner/name`, with
    a config `owner/name:config`). Blank lines and wiki headings (` = Title = `) are dropped. A file that is missing or
    without text is an `InputError`."""
    if not sources:
        raise InputError("data.corpus is empty; name text files or a hub corpus, or set stages.general_kd.epochs=0")
    return list(chain.from_iterable(map(_paragraphs, sources)))


def _paragraphs(source: str) -> Iterator[str]:
    path = Path(source)
    if path.is_dir():
        raise InputError(f"data.corpus: {source} is a directory; name its text files")
    if path.is_file():
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except UnicodeDecodeError as error:
            raise InputError(
                f"data.corpus: {source} is not UTF-8 text ({error.reason} at byte {error.start})"
            ) from error
    elif path.suffix or path.is_absolute() or source.startswith("."):
        raise InputError(f"data.corpus: {source} is missing; give existing text files or a hub corpus")
    else:
        lines = _hub_lines(source)
    kept = [line for line in map(str.strip, lines) if line and not (line.startswith("= ") and line.endswith(" ="))]
    if not kept:
        raise InputError(f"data.corpus: {source} holds no text; give another file")
    yield from kept


def _hub_lines(source: str) -> list[str]:
    name, _, config = source.partition(":")
    loaded = load_splits(name, config or None, instead="give text files in data.corpus")
    if "train" not in loaded or "text" not in loaded["train"].column_names:
        raise InputError(f"data.corpus: {source} has no split train with a column text; give another corpus")
    texts = list(loaded["train"]["text"])
    if wrong := [row for row, text in enumerate(texts) if not isinstance(text, str)]:
        raise InputError(f"data.corpus: {source}, row {wrong[0]}: {texts[wrong[0]]!r} is no text; give another corpus")
    return [line for text in texts for line in text.split("\n")]


class CorpusData(LightningDataModule):
    """Paragraphs as batches of `input_ids`, `attention_mask`, `token_type_ids`: long[B, N], without labels.

    A paragraph is cut into pieces of at most `max_length` tokens, [CLS] and [SEP] included; none are joined. Loader,
    seed, processes and resume as in `TaskData`. There is no validation split.
    """

    def __init__(
        self,
        *,
        sources: list[str],
        tokenizer,
        max_length: int,
        batch_size: int,
        seed: int,
        pad_to: int = PAD_TO,
    ):
        super().__init__()
        self.batch_size, self.seed, self.pad_to = batch_size, seed, pad_to
        self.encoded = encode_pieces(tokenizer, read_corpus(sources), max_length=max_length)

    def train_dataloader(self) -> BatchLoader:
        """A new loader, at epoch 0."""
        size = self.batch_size
        return BatchLoader(self.encoded, batch_size=size, seed=self.seed, shuffle=True, pad_to=self.pad_to)

    def fixed_batches(self, n_batches: int, batch_size: int, seed: int) -> list[Batch]:
        """As `TaskData.fixed_batches`."""
        return self.encoded.batches(self.encoded.drawn(n_batches * batch_size, seed), batch_size)


def encode_pieces(tokenizer, paragraphs: list[str], *, max_length: int) -> Encoded:
    """Every paragraph as one or more `[CLS] tokens [SEP]`, no token lost."""
    room = max_length - 2
    if room < 1:
        raise InputError(f"data.max_length is {max_length}; text needs at least 3 tokens")
    # verbose=False: a paragraph longer than the model's input is what this function is for.
    rows = tokenizer(paragraphs, add_special_tokens=False, verbose=False)["input_ids"]
    pieces = [
        [tokenizer.cls_token_id, *row[at : at + room], tokenizer.sep_token_id]
        for row in rows
        for at in range(0, len(row), room)
    ]
    if not pieces:
        raise InputError("data.corpus: the tokenizer leaves nothing of its text; give other files")
    ids = torch.from_numpy(np.concatenate([np.asarray(piece, dtype=np.int64) for piece in pieces]))
    offsets = torch.tensor(np.cumsum([0, *map(len, pieces)]), dtype=torch.long)
    return Encoded(ids, torch.zeros_like(ids), offsets, None, tokenizer.pad_token_id, max_length)
