"""The folder of a local sweep: one start at a time works in it, on one sweep."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spikeprune import jsonfile
from spikeprune.errors import InputError
from spikeprune.rundir import write_json
from spikeprune.sweeps.spec import Sweep

PATIENCE = 3.0  # seconds for the trials of a killed start to be gone
POLL = 0.25  # seconds between two looks whether they are


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """A lock that ends with the last process that holds it, trials included. Yields its file descriptor."""
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        until = time.monotonic() + PATIENCE
        while not _taken(handle):
            if time.monotonic() > until:
                owner = os.pread(handle, 100, 0).decode() or "another process"
                raise InputError(f"{folder}: is being run by {owner}; wait for it, or use another --dir")
            time.sleep(POLL)
        os.truncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {os.uname().nodename}".encode())
        yield handle
    finally:
        os.close(handle)


def _taken(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def enter(sweep: Sweep, folder: Path) -> None:
    """Note the sweep in its folder, or make sure that it is the one there; how many trials it has may change."""
    now = {key: value for key, value in sweep.tree.items() if key not in ("run_cap", "description", "name")}
    path = folder / "sweep.json"
    if path.is_file():
        before = jsonfile.read(path, "remove it if the sweep in this folder is the one to go on with")
        now = jsonfile.loads(jsonfile.dumps(now))
        changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        if changed:
            raise InputError(
                f"{folder}: was started with another sweep ({', '.join(changed)} differ); use another --dir, or the "
                f"old file and values: {path}"
            )
        return
    write_json(path, now)
