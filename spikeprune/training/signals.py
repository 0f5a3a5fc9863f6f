"""What a cluster says before it takes the machine away: SIGUSR1 (come back later) and SIGTERM (stop)."""

from __future__ import annotations

import ctypes
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

COME_BACK = signal.SIGUSR1
PARENT_DEATH = 1  # PR_SET_PDEATHSIG of Linux' prctl
CODES = {COME_BACK: 75, signal.SIGTERM: 128 + signal.SIGTERM}  # 75 is EX_TEMPFAIL of sysexits.h: try again


class Stopped(BaseException):
    """The process was told to stop, and what it has done is saved. Like KeyboardInterrupt no error that an `except
    Exception` on the way may take for its own."""

    def __init__(self, number: int):
        super().__init__(number)
        self.signal = signal.Signals(number)
        self.code = CODES[self.signal]


class _Table:
    """This process' signal table, of which there is one: is it ours, which signal has come."""

    ours = False
    received = 0


def _handle(number: int, frame: object) -> None:
    _Table.received = _Table.received or number


@contextmanager
def caught() -> Iterator[None]:
    """Inside, either signal waits until somebody asks for it with `received` or `check`: nothing is left half done.
    Main thread only."""
    before = {number: signal.getsignal(number) for number in CODES}
    _Table.ours, _Table.received = True, 0
    insist()
    try:
        yield
    finally:
        _Table.ours, _Table.received = False, 0
        for number, handler in before.items():
            signal.signal(number, handler)


def insist() -> None:
    """Takes the signals back from a library that has put its own handlers there."""
    for number in CODES if _Table.ours else ():
        signal.signal(number, _handle)


def received() -> int:
    """The first signal that came, 0 for none."""
    return _Table.received


def check() -> None:
    """Raises Stopped if a signal has come."""
    if _Table.received:
        raise Stopped(_Table.received)


def end_with_parent() -> None:
    """From now on Linux kills this process when its parent is gone, however it went: killed, that can tell nobody.
    Elsewhere nothing happens."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PARENT_DEATH, signal.SIGKILL)
