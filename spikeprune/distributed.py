"""Communication between the processes of one run. With one process every function here is the identity.

Rank 0 reads, writes and decides, and broadcasts the result. Messages go over their own gloo group: a rank may wait
there for as long as rank 0 takes to read a data set, where NCCL would time out, and no message waits for a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from spikeprune.errors import InputError

T = TypeVar("T")
MESSAGE_TIMEOUT = timedelta(days=7)  # that a rank waits for a message; a rank that dies closes its connections
RANK_SEED_STRIDE = 1_000_003  # between the seeds of two ranks: farther than stages or neighbouring seeds are apart

_messages: dist.ProcessGroup | None = None  # set by `connect`
_dismissed = False  # whether the other ranks have been told to exit


def running() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if running() else 0


def world() -> int:
    """The number of processes."""
    return dist.get_world_size() if running() else 1


def connect() -> None:
    """Open the group for messages; every rank calls it once, when torch.distributed runs."""
    global _messages, _dismissed
    _dismissed = False
    _messages = dist.new_group(backend="gloo", timeout=MESSAGE_TIMEOUT)


def from_rank_zero(make: Callable[[], T]) -> T:
    """The result of `make()`, which only rank 0 calls, on every rank.

    Bad input (InputError) or a full disk (OSError) that it meets is raised on rank 0, whose process prints it; the
    other ranks exit silently, with SystemExit of code 0, so that no launcher kills rank 0 because of them.
    """
    if world() == 1:
        return make()
    box: list[Any] = [None]
    if rank() == 0:
        try:
            box = [(make(),)]
        except (InputError, OSError):
            dismiss()
            raise
    dist.broadcast_object_list(box, src=0, group=_messages)
    if box[0] is None:
        raise SystemExit(0)
    return box[0][0]


def dismiss() -> None:
    """Rank 0 is about to exit with an error: the others, which wait for its next message, exit silently."""
    global _dismissed
    if world() > 1 and rank() == 0 and not _dismissed:
        _dismissed = True
        dist.broadcast_object_list([None], src=0, group=_messages)


def gather(value: T) -> list[T]:
    """Every rank's value, on every rank."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value, group=_messages)
    return values


def require_equal(value: Any, what: str) -> None:
    """Raises RuntimeError where `value` is not equal on all ranks, which no input may cause."""
    values = gather(value)
    if any(other != values[0] for other in values):
        differ = [i for i, other in enumerate(values) if other != values[0]]
        raise RuntimeError(f"{what} of rank {', '.join(map(str, differ))} is not that of rank 0")


def total(x: Tensor) -> Tensor:
    """Sum over the ranks, of several a new tensor; on a GPU by NCCL and without waiting for it."""
    if world() == 1:
        return x
    x = x.clone()
    dist.all_reduce(x, group=_group(x))
    return x


def mean(x: Tensor) -> Tensor:
    """Mean over the ranks, the same bits on all of them, so that decisions made from it agree."""
    if world() == 1:
        return x
    x = total(x) / world()
    dist.broadcast(x, src=0, group=_group(x))
    return x


def _group(x: Tensor) -> dist.ProcessGroup | None:
    return None if x.is_cuda else _messages


def own_randomness() -> None:
    """Give each rank its own random numbers from now on, or dropout would be the same on all. Rank 0 keeps its own."""
    if rank():
        torch.manual_seed(torch.initial_seed() + RANK_SEED_STRIDE * rank())
