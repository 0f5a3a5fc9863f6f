"""What a command prints: its last line and exit code, an error that a user can correct as one sentence, on any
terminal; and `run.log`, what the attempts of a run have printed, one after the other."""

from __future__ import annotations

import errno
import os
import re
import select
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from spikeprune.errors import MEMORY, InputError, out_of_memory
from spikeprune.files.secrets import redacted
from spikeprune.training.signals import Stopped

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
    except KeyboardInterrupt:
        print(f"\ninterrupted{hint}", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if not (text := sentence(error)):
            raise
        print(f"error: {shown(text)}", file=sys.stderr)
        return 2


def sentence(error: BaseException) -> str:
    """An error that a user can correct, as one sentence; empty for any other."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, (MemoryError, RuntimeError)) and out_of_memory(error):
        return f"{MEMORY} ({str(error).partition(chr(10))[0][:200]})"
    if (number := _errno(error)) in UNWRITABLE:
        place = f"{error.filename}: " if getattr(error, "filename", None) else ""
        return f"{place}cannot be written: {getattr(error, 'strerror', None) or os.strerror(number)}"
    return ""


def _errno(error: BaseException) -> int | None:
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


# ------------------------------------------------------------------------------------------------------------- run.log


class Recorder:
    """A text stream whose output also goes into a file. All else is the stream's own."""

    def __init__(self, stream: TextIO, file: TextIO):
        self.stream, self.file = stream, file

    def write(self, text: str) -> int:
        self.file.write(redacted(text))
        return self.stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def unrecorded(stream: TextIO) -> TextIO:
    """The stream itself, for a progress bar, of which a file would hold every state."""
    return stream.stream if isinstance(stream, Recorder) else stream


@contextmanager
def recorded(path: Path) -> Iterator[None]:
    """Inside, what this process prints is appended to `path`, under the time; an exception that ends it too."""
    with path.open("a", encoding="utf-8", errors="backslashreplace", buffering=1) as file:
        file.write(f"# {datetime.now():%Y-%m-%d %H:%M:%S}\n")
        before = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = (Recorder(stream, file) for stream in before)
        try:
            yield
        except BaseException as error:
            file.write(redacted(ending(error)))
            raise
        finally:
            sys.stdout, sys.stderr = before


def ending(error: BaseException) -> str:
    """The lines that tell why an attempt has ended: a sentence where the user or the cluster has caused it."""
    if text := sentence(error):
        return f"error: {text}\n"
    if isinstance(error, KeyboardInterrupt):
        return "interrupted\n"
    if isinstance(error, Stopped):
        return f"stopped by {error.signal.name}\n"
    return "".join(traceback.format_exception(error))
