"""A task's examples as tokens in memory, and their batches: seeded, shared by the processes, resumed in mid-epoch.

Shapes: B sentences (or pairs) of a batch, N tokens of its longest, rounded up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule
from torch import Tensor

from spikeprune import distributed
from spikeprune.config.tasks import TRAIN
from spikeprune.data.raw import RawData
from spikeprune.errors import InputError

PAD_TO = 8  # what tensor cores like
PAD_REPLAYED = 16  # fewer shapes, so fewer CUDA graphs; more would cost short sentences much padding
POOL = 50  # batches that share one sorting by length: large enough to save padding, small enough to stay shuffled

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Encoded:
    """All examples of a split, back to back. `offsets[i]:offsets[i+1]` are the tokens of example i."""

    ids: Tensor  # long[tokens]
    types: Tensor  # long[tokens], 0 in the first sentence, 1 in the second
    offsets: Tensor  # long[examples + 1]
    labels: Tensor | None  # long[examples], float32[examples] for regression, None for plain text
    pad_id: int
    max_length: int
    truncated: int = 0  # examples that were cut to `max_length`

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Tensor:
        """long[examples], in tokens."""
        return self.offsets[1:] - self.offsets[:-1]

    def drawn(self, count: int, seed: int) -> list[int]:
        """Up to `count` examples, the same for the same seed and on every process."""
        return Random(seed).sample(range(len(self)), min(count, len(self)))

    def batches(self, rows: Sequence[int], size: int) -> list[Batch]:
        """Of these examples in their order; the last is smaller, where they end."""
        return [self.batch(rows[at : at + size]) for at in range(0, len(rows), size)]

    def batch(self, rows: Sequence[int] | np.ndarray, pad_to: int = PAD_TO) -> Batch:
        """`input_ids`, `attention_mask`, `token_type_ids`: long[B, N]; `labels`: [B], where there are labels.

        N is the longest example's length, rounded up to a multiple of `pad_to` but never above `max_length`.
        """
        rows = torch.as_tensor(rows, dtype=torch.long)
        start, length = self.offsets[rows], self.lengths[rows]  # [B]
        longest = int(length.max())
        width = max(longest, min(-(-longest // pad_to) * pad_to, self.max_length))
        at = torch.arange(width)  # [N]
        mask = at < length[:, None]  # [B, N]
        token = torch.where(mask, start[:, None] + at, 0)
        out = {
            "input_ids": torch.where(mask, self.ids[token], self.pad_id),
            "attention_mask": mask.long(),
            "token_type_ids": torch.where(mask, self.types[token], 0),
        }
        if self.labels is not None:
            out["labels"] = self.labels[rows]
        return out


def encode(
    tokenizer,
    first,
    second=None,
    labels=None,
    *,
    max_length: int,
    regression: bool = False,
    place: Callable[[int], str] = "example {}".format,
) -> Encoded:
    """Tokenizes sentences (pairs) once: `[CLS] first [SEP]` or `[CLS] first [SEP] second [SEP]`, cut to `max_length`
    tokens, special ones included, from the longer of the two. An example without any other token is an InputError,
    which says its `place(i)`."""
    rows = tokenizer(
        list(first),
        None if second is None else list(second),
        truncation=True,
        max_length=max_length,
        return_token_type_ids=True,
        return_attention_mask=False,
    )
    lengths = [len(row) for row in rows["input_ids"]]
    special = tokenizer.num_special_tokens_to_add(pair=second is not None)
    if empty := [i for i, length in enumerate(lengths) if length <= special]:
        text = first[empty[0]] if second is None else f"{first[empty[0]]} {second[empty[0]]}"
        raise InputError(f"{place(empty[0])}: the tokenizer leaves nothing of {text!r}; correct or drop it")
    full = [i for i, length in enumerate(lengths) if length == max_length]
    kind = torch.float32 if regression else torch.long
    return Encoded(
        ids=_flat(rows["input_ids"]),
        types=_flat(rows["token_type_ids"]),
        offsets=torch.tensor(np.concatenate([[0], np.cumsum(lengths)]), dtype=torch.long),
        labels=None if labels is None else torch.tensor(labels, dtype=kind),
        pad_id=tokenizer.pad_token_id,
        max_length=max_length,
        truncated=sum(bool(rows.encodings[i].overflowing) for i in full),
    )


def _flat(rows: list[list[int]]) -> Tensor:
    return torch.from_numpy(np.concatenate([np.asarray(row, dtype=np.int64) for row in rows]))


def sums(lengths: Tensor) -> Tensor:
    """float64[3]: how many sentences, tokens and pairs of tokens."""
    return torch.stack([torch.ones_like(lengths), lengths, lengths * lengths]).sum(1).double()


def shares(own: Tensor, whole: Tensor, world: int) -> Tensor:
    """float64[4], from the `sums` of one process' sentences and of the whole batch: by what a mean over the process'
    sentences, tokens and pairs of tokens must be multiplied so that the mean over `world` processes is that over the
    whole batch; and the whole batch's mean tokens of a sentence."""
    return torch.cat([world * own / whole, whole[1:2] / whole[:1]])


class BatchLoader:
    """Yields `Encoded.batch` dicts; any number of processes, each its own share. Hence build the Trainer with
    `use_distributed_sampler=False`.

    With `shuffle`, for training, `batch_size` is that of all processes together: every epoch the examples are split
    into `len(loader)` batches of nearly equal size, at most `batch_size`, none dropped and none repeated, the same for
    any number of processes, and each batch is dealt out, longest sentences evenly. With several processes a batch also
    has `share`, float64[4] (see `shares`), which makes the mean of their losses that of the whole batch. The order is a
    pure function of (seed, epoch): a shuffle, sorted by length within pools of 50 batches to save padding, and the
    batches shuffled again.

    Without, for validation, `batch_size` is one process': each goes through its share of the examples sorted by length,
    all in the same number of batches, since collectives must match.

    Lightning saves `state_dict()` with its checkpoints and loads it on resume: the loader then resumes behind the last
    batch that was yielded. Each further `iter()` is the next epoch; one that yielded nothing does not count.
    With `limit_train_batches` a checkpoint taken at the end of a cut epoch resumes inside that epoch.
    """

    def __init__(
        self, data: Encoded, *, batch_size: int, seed: int = 0, shuffle: bool = False, pad_to: int = PAD_TO
    ) -> None:
        if batch_size < 1:
            raise InputError(f"the batch size must be at least 1, not {batch_size}")
        self.rank, self.world = distributed.rank(), distributed.world()
        smallest = len(data) // -(-len(data) // batch_size) if shuffle else len(data)
        if smallest < self.world:
            what = "a batch of" if shuffle else "a split of"
            raise InputError(
                f"{what} {smallest} examples cannot be shared by {self.world} processes; use fewer devices"
            )
        self.data, self.batch_size, self.seed, self.shuffle, self.pad_to = data, batch_size, seed, shuffle, pad_to
        self.epoch, self.yielded = 0, 0
        self._resumed = False

    def __len__(self) -> int:
        """Batches per epoch of one process."""
        if self.shuffle:
            return -(-len(self.data) // self.batch_size)
        most, least = -(-len(self.data) // self.world), len(self.data) // self.world  # examples of a process
        return min(-(-most // self.batch_size), least)

    def batches(self, epoch: int) -> list[np.ndarray]:
        """The row numbers of each of this process' batches in `epoch`; with `shuffle` of all processes' batches."""
        lengths = self.data.lengths.numpy()
        if not self.shuffle:
            order = np.argsort(lengths, kind="stable")[self.rank :: self.world]
            return np.array_split(order, len(self))
        random = np.random.default_rng([self.seed, epoch])
        order = random.permutation(len(self.data))
        pool = POOL * self.batch_size
        pools = [order[at : at + pool] for at in range(0, len(order), pool)]
        order = np.concatenate([rows[np.argsort(lengths[rows], kind="stable")] for rows in pools])
        batches = np.array_split(order, len(self))
        return [batches[i] for i in random.permutation(len(batches))]

    def __iter__(self) -> Iterator[Batch]:
        if self.yielded and not self._resumed:
            self.epoch, self.yielded = self.epoch + 1, 0
        return self._run()

    def _run(self) -> Iterator[Batch]:
        for rows in self.batches(self.epoch)[self.yielded :]:
            self._resumed = False
            self.yielded += 1
            yield self.batch(rows)

    def batch(self, rows: np.ndarray) -> Batch:
        if self.world == 1 or not self.shuffle:
            return self.data.batch(rows, self.pad_to)
        own = rows[self.rank :: self.world]  # a batch's rows are sorted by length
        share = shares(sums(self.data.lengths[own]), sums(self.data.lengths[rows]), self.world)
        return {**self.data.batch(own, self.pad_to), "share": share}

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is: `epoch`, batches `yielded` of it, and `length`, to notice another split into batches."""
        if self.yielded == len(self):
            return {"epoch": self.epoch + 1, "yielded": 0, "length": len(self)}
        return {"epoch": self.epoch, "yielded": self.yielded, "length": len(self)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["yielded"] and state["length"] != len(self):
            raise InputError(
                f"the checkpoint stopped inside an epoch of {state['length']} batches, but an epoch now has "
                f"{len(self)}; resume with the same data, batch size and number of processes"
            )
        self.epoch, self.yielded = state["epoch"], state["yielded"]
        self._resumed = self.yielded > 0


class TaskData(LightningDataModule):
    """A task's splits as batches: dicts of `input_ids`, `attention_mask`, `token_type_ids` (long[B, N]) and `labels`
    (long[B], or float32[B] for regression).

    Args:
        raw: from `glue.load_raw` or `own.load_own`.
        tokenizer: a fast one.
        max_length: tokens of an example, special ones included.
        batch_size: of training, of all processes together; `eval_batch_size`: of validation, of each.
        seed: of the training order.

    Attribute `pad_to`: training batches are padded to a multiple of it. Build the Trainer with
    `use_distributed_sampler=False`: the loaders share the examples between processes themselves (see `BatchLoader`,
    also for resuming in the middle of an epoch).
    """

    def __init__(
        self,
        *,
        raw: RawData,
        tokenizer,
        max_length: int,
        batch_size: int,
        eval_batch_size: int,
        seed: int,
    ):
        super().__init__()
        self.raw, self.task = raw, raw.task
        self.batch_size, self.eval_batch_size, self.seed, self.pad_to = batch_size, eval_batch_size, seed, PAD_TO
        self.dev_names = list(raw.task.dev)
        self.encoded: dict[str, Encoded] = {
            name: encode(
                tokenizer,
                split.first,
                split.second,
                split.labels,
                max_length=max_length,
                regression=raw.task.regression,
                place=lambda i, split=name: f"task {raw.task.name} from {raw.origin}, split {split}, example {i}",
            )
            for name, split in raw.splits.items()
        }

    def train_dataloader(self) -> BatchLoader:
        """A new loader, at epoch 0."""
        data, size = self.encoded[TRAIN], self.batch_size
        return BatchLoader(data, batch_size=size, seed=self.seed, shuffle=True, pad_to=self.pad_to)

    def val_dataloader(self) -> list[BatchLoader]:
        """One loader for each of `dev_names`; every example exactly once, sorted by length."""
        return [BatchLoader(self.encoded[name], batch_size=self.eval_batch_size) for name in self.dev_names]

    def calibration_batches(self, n_sentences: int, seed: int) -> Batch:
        """One batch of `n_sentences` training examples, or of all."""
        data = self.encoded[TRAIN]
        return data.batch(data.drawn(n_sentences, seed))

    def fixed_batches(self, n_batches: int, batch_size: int, seed: int) -> list[Batch]:
        """Up to `n_batches` batches of different training examples."""
        data = self.encoded[TRAIN]
        return data.batches(data.drawn(n_batches * batch_size, seed), batch_size)

    def sample_batches(self, sentences: int, batch_size: int, seed: int) -> list[Batch]:
        """Up to `sentences` training examples, sorted by length."""
        data = self.encoded[TRAIN]
        return data.batches(sorted(data.drawn(sentences, seed), key=data.lengths.tolist().__getitem__), batch_size)
