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
from faults.kills import command_of, contents, differs, disturbed, last_line, left_by, output_commands
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
    row, random = Row("no space left in a run", seed), Random(f"full {seed}")
    glue = write_sst2(folder / "glue")
    wanted, began = undisturbed(folder, glue, row), time.monotonic()
    while wanted and row.tried < count and time.monotonic() - began < seconds:
        disk, log = folder / f"disk{row.tried}", folder / "log"
        with small_disk(disk, 120_000_000) as missing:
            if missing:
                row.note = missing
                return row
            run, words = RunDirectory(disk / "run"), command_of(disk / "run", glue)
            disturbed(words, run.path, log, random, longest=2.0)  # somewhere in the run
            if run.config.exists():
                fill(disk, random.randint(0, MOST_LEFT))
            code, said = answer(words, log)
            (disk / "ballast").unlink(missing_ok=True)
            wrong = last_line(log) if run_command(words, log) else differs(left_by(run), wanted)
            judge(row, code, said, f"started again: {wrong}" if wrong else "", str(row.tried))
    row.seconds = time.monotonic() - began
    return row


def full_outputs(folder: Path, seed: int, count: int, seconds: float) -> Row:
    """Space runs out while `compact`, `export` or `predict --out` writes; when there is some again, they do."""
    row, random = Row("no space left for compact, export, predict", seed), Random(f"full outputs {seed}")
    disk, log = folder / "disk", folder / "log"
    with small_disk(disk, 120_000_000) as missing:
        if missing:
            row.note = missing
            return row
        (ways, wanted), began = output_commands(folder, disk / "run"), time.monotonic()
        while row.tried < count and time.monotonic() - began < seconds:
            name, out = random.choice(list(ways)), disk / f"out{row.tried}"
            out.mkdir()
            fill(disk, random.randint(0, MOST_LEFT if name != "predict" else 8_000))
            code, said = answer(ways[name](out), log)
            (disk / "ballast").unlink()
            again = run_command(ways[name](out), log) if code else 0
            where = disk / "run" / "compact" if name == "compact" else out
            wrong = last_line(log) if again else differs(contents(where), wanted[name])
            judge(row, code, said, f"started again: {wrong}" if wrong else "", f"{row.tried}, {name}")
            shutil.rmtree(out)
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
            code, said = answer(words, log)
            remount(disk, "rw")
            judge(row, code, said, "was not refused" if code == 0 else "", "read-only")
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
    """Each file of an unfinished run removed, cut short or with a bit flipped; then the run is started again."""
    row, random = Row("files of an unfinished run removed, cut, flipped", seed), Random(f"vanished {seed}")
    glue = write_sst2(folder / "glue")
    wanted = undisturbed(folder, glue, row)
    if wanted is None:
        return row
    half, words, began = half_run(folder, glue), command_of(folder / "run", glue), time.monotonic()
    for run, name, how in damaged(half, folder / "run", random, count):
        if time.monotonic() - began > seconds:
            break
        code, said = answer(words, folder / "log")
        judge(row, code, said, differs_but_for(left_by(run), wanted, name) if code == 0 else "", f"{name} {how}")
    row.seconds = time.monotonic() - began
    return row


def finished(folder: Path, seed: int, count: int, seconds: float) -> Row:
    """Each file of a finished run and its `compact/` in the same three ways, and then one of the commands that read
    it, whose answer is that of the whole run or a refusal."""
    row, random = Row("files of a finished run removed, cut, flipped", seed), Random(f"finished {seed}")
    given = folder / "run"
    output_commands(folder, given)
    readers = (
        ["train", *command_of(given, folder / "glue")[1:], "run.log_every=2"],
        ["evaluate", str(given), "--json"],
        ["evaluate", str(given), "--json", "--compact"],
        ["predict", str(given), "a good film", "a bad film"],
        ["predict", str(given), "--compact", "a good film", "a bad film"],
    )
    wanted = [answer(words, folder / "log")[1] for words in readers]
    summary, began = RunDirectory(given).read_summary(), time.monotonic()
    given.rename(folder / "whole")
    for run, name, how in damaged(folder / "whole", given, random, count):
        if time.monotonic() - began > seconds:
            break
        reader = random.randrange(len(readers))
        code, said = answer(readers[reader], folder / "log")
        wrong = ""
        if code == 0:
            trained = reader == 0  # and may have made again what was gone, which it says
            wrong = differs(results(run.read_summary()), results(summary)) if trained else differs(said, wanted[reader])
        judge(row, code, said, wrong, f"{name} {how}, {readers[reader][0]}")
    row.seconds = time.monotonic() - began
    return row


def results(summary: dict) -> dict:
    """A summary without times and the state of the checkout."""
    rows = {"teacher": summary["teacher"], **summary["stages"]}
    return {**summary, "commit": "", "teacher": {}, "stages": {k: {**row, "seconds": 0} for k, row in rows.items()}}


def damaged(source: Path, given: Path, random: Random, count: int) -> Iterator[tuple[RunDirectory, str, str]]:
    """`count` copies of a run in `given`, at most three of each file, of which one file is damaged: run, file, how."""
    names = [str(p.relative_to(source)) for p in sorted(source.rglob("*")) if p.is_file() and "lock" not in p.name]
    cases = [(name, how) for name in names for how in ("removed", "cut", "flipped")]
    random.shuffle(cases)
    for name, how in cases[:count]:
        shutil.rmtree(given, ignore_errors=True)
        shutil.copytree(source, given)
        damage(random, given / name, how)
        yield RunDirectory(given), name, how


def answer(words: list[str], log: Path) -> tuple[int, str]:
    """Exit code of a command, and what it printed."""
    log.unlink(missing_ok=True)
    code = run_command(words, log)
    return code, log.read_text(errors="replace") if log.exists() else ""


def judge(row: Row, code: int, said: str, wrong: str, place: str) -> None:
    """Count a command that met a fault: `wrong` is what it did wrong where it ended with 0; else it has refused, in a
    sentence."""
    refused = code == 2 and said.count("error: ") == 1 and "Traceback" not in said
    wrong = wrong or ("" if code == 0 or refused else f"exit code {code}: {said[-300:]}")
    row.tried, row.refused = row.tried + 1, row.refused + refused
    row.accepted += code == 0 and not wrong
    row.lost += [f"{place}: {wrong}"] if wrong else []


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
    return differs(*({key: value for key, value in side.items() if key not in lenient} for side in (found, wanted)))
