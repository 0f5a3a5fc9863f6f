"""Runs that are killed again and again, at random moments and in the middle of a write, and end as undisturbed ones."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from children import begin, run_command
from micro import GLUE, logged, micro, only, write_sst2
from micro import STAGES as MADE

from faults.campaign import CHANGES, Row
from spikeprune import distributed
from spikeprune.experiment.run_directory import STAGES, RunDirectory
from spikeprune.training.callbacks import schedule

PATIENCE = 120  # seconds that a start may take
CODES = {"SIGTERM": (143, -15), "SIGINT twice": (130, -2)}  # else SIGKILL's
RUN_FILES = ("",) * 4 + ("resume.ckpt",) * 3 + ("record.json",) * 2 + ("model.safetensors", "metrics.", "summary.json")
ANY = ("",)
WAYS = ("moment", "moment", "write", "write", "write", "decision", "SIGTERM", "SIGINT twice")


@dataclass(frozen=True)
class Disturbance:
    """How one start of a command ends early, unless it is faster."""

    way: str  # a name in WAYS
    number: int  # of the change of a file, or of the step of a decision, that is begun when it is killed
    part: str  # of the names of the files whose changes count
    seconds: float  # until a signal
    back: float  # by how much the process' clock is set back, in seconds
    after: float  # seconds from its start


def draw(random: Random, files: Sequence[str], longest: float) -> Disturbance:
    ways = WAYS if files is RUN_FILES else [way for way in WAYS if way != "decision"]
    way, part = random.choice(ways), random.choice(files)
    most = random.choice((2, 4, 8) if part or way == "decision" else (4, 20, 100))
    back = random.choice((0, random.uniform(1, 86_400)))
    after = random.choice((0, random.uniform(0, longest)))
    return Disturbance(way, random.randint(1, most), part, random.uniform(0.05, longest), back, after)


def prepare(how: Disturbance, folder: str) -> None:
    """In the process that is to be disturbed: its clock, and what it kills itself at, which it prints first."""
    real, began, left = time.time, time.monotonic(), [how.number]
    time.time = lambda: real() - (how.back if time.monotonic() - began >= how.after else 0)

    def count(what: str) -> None:
        left[0] -= 1
        if not left[0]:
            os.write(2, f"\nkilled at {what}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(event: str, args: tuple) -> None:
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        path = str(args[0]) if writes or event in CHANGES else ""
        if path.startswith(folder) and how.part in path:
            count(f"a write of {next((part for part in RUN_FILES if part and part in path), 'another file')}")

    if how.way == "write":
        sys.addaudithook(audit)
    for module, name in ((distributed, "mean"), (schedule, "take_from_rank_zero")) if how.way == "decision" else ():
        plain = getattr(module, name)
        setattr(module, name, lambda *given, plain=plain: (count("a decision"), plain(*given))[1])


def disturbed(
    words: list[str], folder: Path, log: Path, random: Random, environment=None, longest: float = 3.0, files=RUN_FILES
) -> str:
    """One start of a command that is disturbed. Returns what has ended it, `finished` for exit code 0, and with a
    colon what should not have happened."""
    how = draw(random, files, longest)
    child = begin(words, log, environment, prepare, (how, str(folder)))
    if how.way in ("write", "decision"):
        child.join(PATIENCE)
    else:
        child.join(how.seconds)
        for _ in range(2 if how.way == "SIGINT twice" else 1):
            if child.is_alive():
                os.kill(child.pid, {"moment": signal.SIGKILL, "SIGTERM": signal.SIGTERM}.get(how.way, signal.SIGINT))
                time.sleep(random.uniform(0, 0.3))
        child.join(PATIENCE)
    if child.is_alive():
        child.kill()
        return f"{how.way}: did not end"
    if child.exitcode == 0:
        return "finished"
    if child.exitcode not in CODES.get(how.way, (-9,)):
        return f"{how.way}: exit code {child.exitcode}"
    own = log.read_text(errors="replace").rpartition("\nkilled at ")[2].splitlines()  # another process may say more
    at = own[0] if how.way in ("write", "decision") else how.way
    return f"{at}{', clock set back' if how.back else ''}"


def until_finished(
    words: list[str], folder: Path, log: Path, random: Random, kills: int, **how
) -> tuple[list[str], str]:
    """Disturb a command `kills` times at most, then let it end; returns what ended each start, and what went wrong."""
    ends: list[str] = []
    while len(ends) < kills:
        end = disturbed(words, folder, log, random, **how)
        if ":" in end:
            return ends, f"{end}: {last_line(log)}"
        if end == "finished":
            return ends, ""
        ends.append(end + stage_of(folder))
    code = run_command(words, log, how.get("environment"))
    return ends, "" if code == 0 else f"started again, exit code {code}: {last_line(log)}"


def stage_of(folder: Path) -> str:
    """Where a run was when it was killed; empty where there is none."""
    run = RunDirectory(folder)
    unfinished = (name for name in MADE if not run.finished(name))
    return f", in {next(unfinished, 'the summary')}" if run.config.is_file() else ""


def counted(ends: Iterable[str]) -> str:
    """How often what has ended a start."""
    found = Counter(part for end in ends for part in end.split(", "))
    return ", ".join(f"{part} {number}" for part, number in sorted(found.items()))


def last_line(log: Path) -> str:
    return (log.read_text(errors="replace").strip().splitlines() or [""])[-1][:300]


def left_by(run: RunDirectory) -> dict:
    """All that a run leaves: files, records, summary, what was logged and the bytes of weights, but for times."""
    names = [name for name in STAGES if run.finished(name)]
    found = {"summary": run.read_summary(), "records": {name: run.record(name) for name in names}}
    for row in (found["summary"]["teacher"], *found["summary"]["stages"].values(), *found["records"].values()):
        row.pop("seconds")
    found["summary"].pop("commit")  # of the checkout, in which somebody may work
    files = sorted(str(p.relative_to(run.path)) for p in run.path.rglob("*") if p.is_file() and ".lock." not in p.name)
    weights = {name: run.verified(name) for name in names}
    return {**found, "files": files, "weights": weights, "logged": sorted(logged(run), key=json.dumps)}


def differs(found: Any, wanted: Any, place: str = "") -> str:
    """The first part in which two runs differ; empty for none."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = {**wanted, **found}
        parts = (differs(found.get(key), wanted.get(key), f"{place}.{key}".strip(".")) for key in keys)
        return next(filter(None, parts), "")
    if found == wanted:
        return ""
    if isinstance(found, list) and isinstance(wanted, list):
        found, wanted = ([x for x in a if x not in b] for a, b in ((found, wanted), (wanted, found)))
    return f"{place} is {str(found)[:150]} and not {str(wanted)[:150]}"


def command_of(folder: Path, glue: Path) -> list[str]:
    return ["train", str(GLUE), *micro(folder, glue), "run.checkpoint_every=3", "stages.spatial.synapses=0.6"]


def training(folder: Path, seed: int, count: int, seconds: float) -> Row:
    """`count` kills of micro runs, up to a dozen of one run."""
    return killed_runs("kills of a run", folder, seed, count, seconds)


def two_processes(folder: Path, seed: int, count: int, seconds: float) -> Row:
    return killed_runs("kills of a run in two processes", folder, seed, count, seconds, ["run.devices=2"], longest=12)


def killed_runs(
    name: str, folder: Path, seed: int, count: int, seconds: float, more: list[str] | None = None, longest: float = 3.0
) -> Row:
    row, random = Row(name, seed), Random(f"{name} {seed}")
    glue, log = write_sst2(folder / "glue"), folder / "log"
    if run_command([*command_of(folder / "undisturbed", glue), *(more or [])], log):
        row.lost.append(f"undisturbed: {last_line(log)}")
        return row
    wanted, runs, began = left_by(RunDirectory(folder / "undisturbed")), 0, time.monotonic()
    every: list[str] = []
    while row.tried < count and time.monotonic() - began < seconds:
        run, runs = RunDirectory(folder / f"run{runs}"), runs + 1
        kills = min(random.randint(3, 12), count - row.tried)
        words = [*command_of(run.path, glue), *(more or [])]
        ends, wrong = until_finished(words, run.path, folder / f"log{runs}", random, kills, longest=longest)
        add(row, ends, wrong or differs(left_by(run), wanted), f"run {runs - 1}")
        every += ends
        shutil.rmtree(run.path)
    row.seconds, row.note = time.monotonic() - began, f"{runs} runs: {counted(every)}"
    return row


def add(row: Row, ends: list[str], wrong: str, place: str) -> None:
    """Count the kills of one command, and what came of them."""
    row.tried += len(ends)
    row.lost += [f"{place}, after {'; '.join(ends)}: {wrong}"] if wrong else []
    row.accepted += 0 if wrong else len(ends)


def sweep(folder: Path, seed: int, count: int, seconds: float) -> Row:
    """A local sweep of four trials, two at a time, whose driver is killed; its trials end with it."""
    row, random = Row("kills of a local sweep", seed), Random(f"sweep {seed}")
    file, log, sweeps = tiny_sweep(folder), folder / "log", 0
    words = ["sweep", str(file), "--local", "--trials", "4", "--jobs", "2", "--dir"]
    if run_command([*words, str(folder / "undisturbed")], log):
        row.lost.append(f"undisturbed: {last_line(log)}")
        return row
    wanted, began = trials_of(folder / "undisturbed"), time.monotonic()
    while row.tried < count and time.monotonic() - began < seconds:
        where, sweeps = folder / f"sweep{sweeps}", sweeps + 1
        kills = min(3, count - row.tried)
        how = {"longest": 15, "files": ANY}
        ends, wrong = until_finished([*words, str(where)], where, folder / f"log{sweeps}", random, kills, **how)
        add(row, ends, wrong or differs(trials_of(where), wanted), f"sweep {sweeps - 1}")
    row.seconds, row.note = time.monotonic() - began, f"{sweeps} sweeps of four trials"
    return row


def tiny_sweep(folder: Path) -> Path:
    glue = write_sst2(folder / "glue")
    words = [*micro("RUN", glue), *only("spatial"), "stages.temporal.t_steps=null", "stages.spatial.epochs=1"]
    words = [word for word in words if not word.startswith(("run.dir=", "stages.spatial.heads"))]
    command = ["${env}", "${interpreter}", "-m", "spikeprune", "train", str(GLUE), *words]
    command += ["run.dir=x/${oc.env:WANDB_RUN_ID}", "${args_no_hyphens}"]
    tree = {"method": "random", "metric": {"name": "result/main", "goal": "maximize"}, "command": command}
    tree["parameters"] = {"stages.spatial.heads": {"min": 0.3, "max": 1.0}}
    (folder / "sweep.yaml").write_text(json.dumps(tree))
    return folder / "sweep.yaml"


def trials_of(folder: Path) -> dict:
    """Values and results of each trial, and the front."""
    return json.loads((folder / "results.json").read_text())


def outputs(folder: Path, seed: int, count: int, seconds: float) -> Row:
    """`compact`, `export` and `predict --out`, killed: what they write is whole or absent, and made again."""
    row, random, log = Row("kills of compact, export, predict", seed), Random(f"outputs {seed}"), folder / "log"
    ways, wanted = output_commands(folder, folder / "run")
    began, commands, every = time.monotonic(), 0, []
    while row.tried < count and time.monotonic() - began < seconds:
        name, out = random.choice(list(ways)), folder / f"out{commands}"
        out.mkdir()
        where, commands = folder / "run" / "compact" if name == "compact" else out, commands + 1
        kills = min(2, count - row.tried)
        ends, wrong = until_finished(ways[name](out), where, log, random, kills, longest=1.0, files=ANY)
        add(row, ends, wrong or differs(contents(where), wanted[name]), name)
        every += [name] * len(ends)
    row.seconds, row.note = time.monotonic() - began, f"{counted(every)}, in {commands} commands"
    return row


def output_commands(
    folder: Path, run: Path
) -> tuple[dict[str, Callable[[Path], list[str]]], dict[str, dict[str, bytes]]]:
    """Commands that write what a run has learnt, each as the words by the directory to write into, and the files that
    they make. The run is made in `run`, and its `compact/`, all else in `folder`."""
    log, texts = folder / "log", folder / "texts.txt"
    texts.write_text("a good film\na bad film\n" * 20)
    ways: dict[str, Callable[[Path], list[str]]] = {
        "compact": lambda out: ["compact", str(run)],
        "export": lambda out: ["export", str(run), "--to", "hf", str(out / "hf")],
        "predict": lambda out: ["predict", str(run), "--file", str(texts), "--out", str(out / "p.csv")],
    }
    wanted = {}
    if run_command(command_of(run, write_sst2(folder / "glue")), log):
        raise RuntimeError(f"undisturbed: {last_line(log)}")
    for name, words in ways.items():
        made = folder / "made" / name
        made.mkdir(parents=True)
        if run_command(words(made), log):
            raise RuntimeError(f"undisturbed: {last_line(log)}")
        wanted[name] = contents(run / "compact" if name == "compact" else made)
    return ways, wanted


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a directory, but for records, which hold its path, and for parts of writers that were killed."""
    skipped = ("export.json", "README.md")
    paths = [p for p in folder.rglob("*") if p.is_file() and not str(p.relative_to(folder)).startswith(".")]
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths if p.name not in skipped}
