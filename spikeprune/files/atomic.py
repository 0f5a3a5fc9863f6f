"""Files and directories that are complete or absent, also after a kill in the middle of a write."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from spikeprune.errors import InputError
from spikeprune.files import jsonfile

PART = ".part"  # ends the name of what is not complete


def write_atomic(path: Path, content: bytes | str) -> None:
    """All of `content` under `path`, or nothing."""
    with new_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write piece by piece, which becomes `path` once the block has ended without an error, and else is
    removed: a temporary one beside it is renamed when it is complete."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PART)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON; numbers that are not finite become null."""
    write_atomic(path, jsonfile.dumps(value, indent=2) + "\n")


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """`write_json` with a checksum, for `jsonfile.read_sealed`."""
    write_json(path, jsonfile.sealed(value))


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A directory to write into, which becomes `path` once the block has ended without an error, and else is removed.
    Raises InputError where `path` exists."""
    absent(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=PART))
    try:
        yield temporary
        temporary.chmod(0o755)
        for file in temporary.iterdir():  # some libraries write for their user alone
            file.chmod(0o644)
        absent(path)  # a rename would replace an empty one
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove_parts(folder: Path) -> None:
    """Remove what writers have left that were killed in `folder`, in which nobody may be writing now."""
    for path in list(folder.rglob(f".*{PART}")):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def absent(path: Path) -> None:
    """Raises InputError where something is at `path`."""
    if os.path.lexists(path):
        raise InputError(f"{path}: exists; nothing is overwritten: remove it or name another one")
