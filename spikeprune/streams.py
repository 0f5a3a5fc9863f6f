"""What standard output and error may do to a program: lack characters, or lose their reader."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable
from typing import TextIO

NO_READER = 141  # as a shell reports a program that SIGPIPE ended


def spoken(main: Callable[[], int]) -> int:
    """The exit code of `main`. Characters that the terminal's encoding lacks are replaced; a reader that is gone, as in
    `… | head -1`, ends the program without a word."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        try:
            return main()
        finally:
            sys.stdout.flush()  # help too, or the interpreter would complain at its end
    except BrokenPipeError:
        gone = [stream for stream in (sys.stdout, sys.stderr) if _reader_is_gone(stream)]
        if not gone:
            raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in gone:
            os.dup2(nowhere, stream.fileno())
        return NO_READER


def _reader_is_gone(stream: TextIO) -> bool:
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
    except (OSError, ValueError):  # no file at all
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
