"""The signals by which a cluster announces the end of a job: SIGUSR1 (requeue) and SIGTERM (stop)."""

from __future__ import annotations

import ctypes
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

REQUEUE = signal.SIGUSR1
PARENT_DEATH = 1  # PR_SET_PDEATHSIG of Linux' prctl
CODES = {REQUEUE: 75, signal.SIGTERM: 128 + signal.SIGTERM}  # 75 is EX_TEMPFAIL of sysexits.h: try again


class Stopped(BaseException):
    """The process received a signal, and its state is saved. Like KeyboardInterrupt it is not caught by `except
    Exception`."""

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
    """Inside, either signal is only recorded, for `received` and `check`, so that no operation is interrupted. Main
    thread only."""
    before = {number: signal.getsignal(number) for number in CODES}
    _Table.ours, _Table.received = True, 0
    install_handlers()
    try:
        yield
    finally:
        _Table.ours, _Table.received = False, 0
        for number, handler in before.items():
            signal.signal(number, handler)


def install_handlers() -> None:
    """Install the handlers of `caught` again, where a library has replaced them; outside `caught` nothing."""
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
    """From now on Linux kills this process when its parent dies, also by SIGKILL. No effect on other systems."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PARENT_DEATH, signal.SIGKILL)
