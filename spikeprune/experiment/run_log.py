"""`run.log`: what the attempts of a run have printed, one after the other."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from spikeprune.errors import MEMORY, InputError, out_of_memory
from spikeprune.files.secrets import redacted
from spikeprune.training.signals import Stopped


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
    if isinstance(error, InputError):
        return f"error: {error}\n"
    if out_of_memory(error):
        return f"error: {MEMORY}\n{error}\n"
    if isinstance(error, KeyboardInterrupt):
        return "interrupted\n"
    if isinstance(error, Stopped):
        return f"stopped by {error.signal.name}\n"
    return "".join(traceback.format_exception(error))
