"""A campaign: many attempts of one kind, counted. Each has its own random numbers, from the campaign's name, the seed
and its own number, so that a single one can be repeated."""

from __future__ import annotations

import gc
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from spikeprune.errors import InputError
from spikeprune.experiment.streams import shown

SECONDS = 30  # of one attempt
MEMORY = 3 * 2**30  # bytes that an attempt may ask for
LONGEST = 2000  # characters of a sentence
Attempt = Callable[[Random], object]


@dataclass
class Row:
    """`accepted`: of hostile input, what was read without complaint; of other faults, what ended as undisturbed."""

    campaign: str
    seed: int
    tried: int = 0
    accepted: int = 0
    refused: int = 0
    lost: list[str] = field(default_factory=list)
    seconds: float = 0.0
    note: str = ""

    def record(self) -> dict:
        return {**vars(self), "lost": list(self.lost), "seconds": round(self.seconds, 1)}


class Slow(BaseException):
    """No `except Exception` may swallow it."""


class _Watch:
    """What the process did during an attempt that no input may make it do."""

    allowed: tuple[str, ...] | None = None
    seen: list[str] = []


CHANGES = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate")
NEVER = ("pickle.find_class", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect")


def _audit(event: str, args: tuple) -> None:
    if _Watch.allowed is None:
        return
    if event in NEVER:
        _Watch.seen.append(f"{event} {args[:2]}")
    elif event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        _outside(event, args[0])
    elif event in CHANGES and (event == "os.rename" or args[-1] in (-1, args[0])):  # else below an open directory
        for path in args[:2]:
            _outside(event, path)


def _outside(event: str, path: object) -> None:
    if isinstance(path, (str, bytes, os.PathLike)):
        full = os.path.realpath(os.fsdecode(path))
        if full != os.devnull and not full.startswith(_Watch.allowed):
            _Watch.seen.append(f"{event} outside: {full}")


sys.addaudithook(_audit)


@contextmanager
def watched(folder: Path) -> Iterator[list[str]]:
    """Inside, writes outside `folder`, other programs, connections and pickled objects are put down in the list."""
    _Watch.allowed, _Watch.seen = (os.path.realpath(folder),), []
    try:
        yield _Watch.seen
    finally:
        _Watch.allowed = None


@contextmanager
def bounded(seconds: int = SECONDS, memory: int = MEMORY) -> Iterator[None]:
    """Inside, an attempt that takes longer raises Slow, one that asks for more memory MemoryError."""

    def late(*_: object) -> None:
        raise Slow(f"took more than {seconds} s")

    limits = resource.getrlimit(resource.RLIMIT_AS)
    own = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + memory
    hard = limits[1] if limits[1] != resource.RLIM_INFINITY else own
    before = signal.signal(signal.SIGALRM, late)
    resource.setrlimit(resource.RLIMIT_AS, (min(own, hard), limits[1]))
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def wrong_sentence(message: str) -> str:
    """What is wrong with what a user gets to read; empty for nothing."""
    text = shown(message)
    if not text.strip():
        return "says nothing"
    if "Traceback" in text:
        return "shows a traceback"
    return next((f"is a line of {len(line)} characters" for line in text.splitlines() if len(line) > LONGEST), "")


def place_of(error: BaseException) -> str:
    """The last line of the program that the error has come through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "spikeprune" in frame.filename] or frames
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}"


def outcome(attempt: Attempt, random: Random, folder: Path) -> tuple[str, str]:
    """`accepted`, `refused` or `lost`, and what was said or went wrong."""
    with watched(folder) as seen:
        try:
            with bounded():
                attempt(random)
            found = "accepted", ""
        except InputError as error:
            wrong = wrong_sentence(str(error))
            found = ("lost", f"its sentence {wrong}: {shown(str(error))[:200]}") if wrong else ("refused", str(error))
        except SystemExit as stop:
            found = {2: ("refused", ""), 0: ("accepted", "")}.get(stop.code, ("lost", f"exit code {stop.code}"))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # Slow, and a panic of a library in Rust, are no Exception
            found = "lost", f"{type(error).__name__} in {place_of(error)}: {error}"
    return ("lost", seen[0]) if seen else found


def hostile(name: str, attempt: Attempt, folder: Path, seed: int, count: int, seconds: float) -> Row:
    """`count` attempts, or as many as `seconds` allow. `attempt` raises InputError, or exits with 2, for what it
    refuses; it may write into `folder` alone."""
    row, began = Row(name, seed), time.monotonic()
    for number in range(count):
        if time.monotonic() - began > seconds:
            break
        what, said = outcome(attempt, Random(f"{name} {seed} {number}"), folder)
        row.tried += 1
        if what == "lost":
            row.lost.append(f"{number}: {' '.join(said.split())[:300]}")
            gc.collect()
        else:
            setattr(row, what, getattr(row, what) + 1)
    row.seconds = time.monotonic() - began
    return row
