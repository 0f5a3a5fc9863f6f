"""A disk that is full at a random write, a directory that cannot be written, and files that change or vanish behind a
run's back: the run ends with one sentence or as undisturbed, never with another result."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from children import attempt, begin, run_command
from micro import write_sst2

from faults.campaign import Row
from faults.kills import command_of, differs, disturbed, last_line, left_by
from spikeprune.experiment.run_directory import RunDirectory

MOST_LEFT = 150_000  # bytes of the disk when it has been filled


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[str]:
    """A file system of its own in `folder`; yields why there is none, else an empty string."""
    folder.mkdir()
    how = f"size={size // 1024}k"
    command = ["mount", "-t", "tmpfs", "-o", how, "spikeprune-faults", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        yield "mounting a small file system needs root"
        return
    try:
        yield ""
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def remount(folder: Path, *how: str) -> None:
    subprocess.run(["mount", "-o", ",".join(("remount", *how)), str(folder)], check=True)


def undisturbed(folder: Path, glue: Path, row: Row) -> dict | None:
    if run_command(command_of(folder / "undisturbed", glue), folder / "log"):
        row.lost.append(f"undisturbed: {last_line(folder / 'log')}")
        return None
    return left_by(RunDirectory(folder / "undisturbed"))


def fill(disk: Path, left: int) -> None:
    free = os.statvfs(disk)
    (disk / "ballast").write_bytes(bytes(max(0, free.f_bavail * free.f_bsize - left)))


def full_disk(folder: Path, seed: int, count: int, seconds: float) -> Row:
    """Space runs out somewhere in a run; when there is some again, the same command ends it."""
    row, random = Row("no space left", seed), Random(f"full {seed}")
    glue = write_sst2(folder / "glue")
    wanted, began = undisturbed(folder, glue, row), time.monotonic()
    while wanted and row.tried < count and time.monotonic() - began < seconds:
        disk, log = folder / f"disk{row.tried}", folder / f"log{row.tried}"
        with small_disk(disk, 120_000_000) as missing:
            if missing:
                row.note = missing
                return row
            run, words = RunDirectory(disk / "run"), command_of(disk / "run", glue)
            disturbed(words, run.path, log, random, longest=2.0)  # somewhere in the run
            if run.config.exists():
                fill(disk, random.randint(0, MOST_LEFT))
            row.tried += 1
            code = run_command(words, log)
            said = last_line(log)
            (disk / "ballast").unlink(missing_ok=True)
            wrong = "" if code == 0 or (code == 2 and said.startswith("error: ")) else f"exit code {code}: {said}"
            row.refused += code == 2
            if not wrong and run_command(words, log):
                wrong = f"started again: {last_line(log)}"
            wrong = wrong or differs(left_by(run), wanted)
            row.accepted += not wrong and code == 0
            row.lost += [f"{row.tried - 1}: {wrong}"] if wrong else []
    row.seconds = time.monotonic() - began
    return row


def read_only(folder: Path, seed: int, count: int, seconds: float) -> Row:
    """A run's directory on a disk that cannot be written, before the run and in its middle; then it can."""
    row, began = Row("read-only disk", seed), time.monotonic()
    glue, disk, log = write_sst2(folder / "glue"), folder / "disk", folder / "log"
    wanted = undisturbed(folder, glue, row)
    with small_disk(disk, 120_000_000) as missing:
        if missing or wanted is None:
            row.note = missing
            return row
        run, words = RunDirectory(disk / "run"), command_of(disk / "run", glue)
        for kills in (0, 1):
            if kills:
                until_first_stage(words, run, log)
            remount(disk, "ro")
            row.tried += 1
            code, said = run_command(words, log), last_line(log)
            remount(disk, "rw")
            if code == 2 and said.startswith("error: "):
                row.refused += 1
            else:
                row.lost.append(f"exit code {code}: {said}")
        code = run_command(words, log)
        wrong = last_line(log) if code else differs(left_by(run), wanted)
        row.lost += [f"afterwards: {wrong}"] if wrong else []
    row.seconds = time.monotonic() - began
    return row


def until_first_stage(words: list[str], run: RunDirectory, log: Path) -> None:
    """Start a run and kill it once its teacher is finished."""
    child = begin(words, log)
    while child.is_alive() and not run.finished("teacher"):
        time.sleep(0.01)
    child.kill()
    child.join()


def vanished(folder: Path, seed: int, count: int, seconds: float) -> Row:
    """Each file of an unfinished run, and of a finished one, removed, cut short or with a bit flipped; then the run is
    started again, and evaluated."""
    row, random = Row("files removed, cut, flipped", seed), Random(f"vanished {seed}")
    glue = write_sst2(folder / "glue")
    wanted = undisturbed(folder, glue, row)
    if wanted is None:
        return row
    half, log, began = half_run(folder, glue), folder / "log", time.monotonic()
    names = [str(p.relative_to(half)) for p in sorted(half.rglob("*")) if p.is_file() and "lock" not in p.name]
    cases = [(name, how) for name in names for how in ("removed", "cut", "flipped")]
    random.shuffle(cases)
    for name, how in cases[:count]:
        if time.monotonic() - began > seconds:
            break
        run = RunDirectory(folder / "run")
        shutil.rmtree(run.path, ignore_errors=True)
        shutil.copytree(half, run.path)
        damage(random, run.path / name, how)
        code = run_command(command_of(run.path, glue), log)
        row.tried += 1
        wrong = ""
        if code == 0:
            wrong = differs_but_for(left_by(run), wanted, name)
            row.accepted += not wrong
        elif code == 2 and last_line(log).startswith("error: "):
            row.refused += 1
        else:
            wrong = f"exit code {code}: {last_line(log)}"
        row.lost += [f"{name} {how}: {wrong}"] if wrong else []
    row.seconds = time.monotonic() - began
    return row


def half_run(folder: Path, glue: Path) -> Path:
    """A run that was killed in the middle of its last stage."""
    half = folder / "half"
    attempt(command_of(half, glue)[2:], folder / "log", ("finetune", 5))
    return half


def damage(random: Random, path: Path, how: str) -> None:
    if how == "removed":
        path.unlink()
        return
    data = path.read_bytes()
    at = random.randrange(len(data) or 1)
    flipped = data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :] if data else b"\1"
    path.write_bytes(data[:at] if how == "cut" else flipped)


def differs_but_for(found: dict, wanted: dict, name: str) -> str:
    """As `differs`, when a file of logs may have lost what the damage has taken of it."""
    lenient = {"metrics.jsonl": ("logged",), "run.log": ()}.get(name, ())
    return differs(found, {key: value for key, value in wanted.items() if key not in lenient})
