"""Exit codes and last lines of a command: an error that a user can correct is one sentence, on any terminal."""

from __future__ import annotations

import errno
import os
import re
import select
import sys
from collections.abc import Callable
from typing import TextIO

from spikeprune.errors import MEMORY, InputError, out_of_memory
from spikeprune.files.secrets import redacted

NO_READER = 141  # as a shell reports a program that SIGPIPE ended
INTERRUPTED = 130
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
UNWRITABLE += (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)
LONGEST = 1500  # characters of a line of an error
RESUMES = "the same command resumes where this one stopped"


def exit_code(main: Callable[[], int], hint: str = "") -> int:
    """Of `main`: 2 and a sentence for an error that a user can correct, 130 for Ctrl-C, whose line ends with `hint`.

    Characters that the terminal's encoding lacks are replaced. A reader that is gone, as in `… | head -1`, ends the
    program silently."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        try:
            return _run(main, hint)
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


def _run(main: Callable[[], int], hint: str) -> int:
    try:
        return main()
    except InputError as error:
        print(f"error: {shown(str(error))}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        print(f"error: {MEMORY} ({shown(str(error).partition(chr(10))[0][:200])})", file=sys.stderr)
        return 2
    except Exception as error:
        if (number := _errno(error)) not in UNWRITABLE:
            raise
        place = f"{error.filename}: " if getattr(error, "filename", None) else ""
        why = getattr(error, "strerror", None) or os.strerror(number)
        print(f"error: {place}cannot be written: {why}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\ninterrupted{hint}", file=sys.stderr)
        return INTERRUPTED


def _errno(error: Exception) -> int | None:
    """Of an OSError, or of one that a library in Rust (safetensors, tokenizers) quotes in an error of its own."""
    if isinstance(error, OSError):
        return error.errno
    quoted = re.search(r"\(os error (\d+)\)", str(error))
    return int(quoted[1]) if quoted else None


def shown(message: str) -> str:
    """A message that may quote a file or an argument, for a terminal: control characters are escaped, so that they
    steer no terminal; of a line longer than LONGEST its beginning and its end are left; secrets are not shown."""
    lines = ("".join(c if c.isprintable() else repr(c)[1:-1] for c in line) for line in redacted(message).split("\n"))
    half = LONGEST // 2
    return "\n".join(line if len(line) <= LONGEST else f"{line[:half]} … {line[-half:]}" for line in lines)


def _reader_is_gone(stream: TextIO) -> bool:
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
    except (OSError, ValueError):  # no file at all
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
