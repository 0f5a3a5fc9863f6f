"""Files that are complete or absent, also after a kill in the middle of a write."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from spikeprune.files import jsonfile


def write_atomic(path: Path, content: bytes | str) -> None:
    """All of `content` under `path`, or nothing: a temporary file beside it is renamed when it is complete."""
    data = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
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
