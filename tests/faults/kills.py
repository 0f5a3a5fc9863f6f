"""Runs that are killed again and again, at random moments and in the middle of a write, and end as undisturbed ones."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from children import begin, run_command
from micro import GLUE, logged, micro, only, write_sst2

from faults.campaign import CHANGES, Row
from spikeprune.experiment.run_directory import STAGES, RunDirectory

PATIENCE = 120  # seconds that a start may take


def prepare(clock: float, number: int, folder: str) -> None:
    """Set this process' clock by so many seconds; and it kills itself when it begins its `number`-th change of a file
    in `folder`, unless that is 0."""
    real = time.time
    time.time = lambda: real() + clock
    left = [number]

    def audit(event: str, args: tuple) -> None:
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in CHANGES) and str(args[0]).startswith(folder):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(audit)


def disturbed(words: list[str], folder: Path, log: Path, random: Random, environment=None, longest: float = 3.0) -> str:
    """One start of a command, which something ends early, unless it is faster: a kill at a random moment or change of
    a file, SIGTERM, or SIGINT twice. Its clock may be up to a day slow. Returns what has ended it, `finished` for exit
    code 0, and with a colon what should not have happened."""
    how = random.choice(("moment", "moment", "write", "write", "write", "SIGTERM", "SIGINT"))
    number = random.randint(1, random.choice((4, 20, 100))) if how == "write" else 0
    clock = random.choice((0, -random.uniform(1, 86_400)))
    child = begin(words, log, environment, prepare, (clock, number, str(folder)))
    if how == "write":
        child.join(PATIENCE)
    else:
        child.join(random.uniform(0.05, longest))
        for _ in range({"SIGINT": 2}.get(how, 1)):
            if child.is_alive():
                os.kill(child.pid, signal.SIGKILL if how == "moment" else signal.Signals[how])
                time.sleep(random.uniform(0, 0.3))
        child.join(PATIENCE)
    if child.is_alive():
        child.kill()
        return f"{how}: did not end"
    code = child.exitcode
    expected = {"SIGTERM": (143, -15), "SIGINT": (130, -2)}.get(how, (-9,))
    if code == 0:
        return "finished"
    return how if code in expected else f"{how}: exit code {code}"


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
        ends.append(end)
    code = run_command(words, log, how.get("environment"))
    return ends, "" if code == 0 else f"started again, exit code {code}: {last_line(log)}"


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
    return {**found, "files": files, "weights": weights, "logged": logged(run)}


def differs(found: Any, wanted: Any, place: str = "") -> str:
    """The first part in which two runs differ; empty for none."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        parts = (differs(found.get(key), value, f"{place}.{key}".strip(".")) for key, value in wanted.items())
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
    while row.tried < count and time.monotonic() - began < seconds:
        run, runs = RunDirectory(folder / f"run{runs}"), runs + 1
        kills = min(random.randint(3, 12), count - row.tried)
        words = [*command_of(run.path, glue), *(more or [])]
        ends, wrong = until_finished(words, run.path, folder / f"log{runs}", random, kills, longest=longest)
        wrong = wrong or differs(left_by(run), wanted)
        row.tried += len(ends) or 1
        row.lost += [f"run {runs - 1}, after {', '.join(ends)}: {wrong}"] if wrong else []
        row.accepted += 0 if wrong else len(ends) or 1
    row.seconds, row.note = time.monotonic() - began, f"{runs} runs"
    return row


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
        ends, wrong = until_finished([*words, str(where)], where, folder / f"log{sweeps}", random, kills, longest=15)
        wrong = wrong or differs(trials_of(where), wanted)
        row.tried += len(ends) or 1
        row.lost += [f"sweep {sweeps - 1}, after {', '.join(ends)}: {wrong}"] if wrong else []
        row.accepted += 0 if wrong else len(ends) or 1
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
    row, random = Row("kills of compact, export, predict", seed), Random(f"outputs {seed}")
    glue, log, run = write_sst2(folder / "glue"), folder / "log", folder / "run"
    if run_command(command_of(run, glue), log):
        row.lost.append(f"undisturbed: {last_line(log)}")
        return row
    (folder / "texts.txt").write_text("a good film\na bad film\n" * 20)
    ways: dict[str, Callable[[Path], list[str]]] = {
        "compact": lambda out: ["compact", str(run)],
        "export": lambda out: ["export", str(run), "--to", "hf", str(out / "hf")],
        "predict": lambda out: ["predict", str(run), "--file", str(folder / "texts.txt"), "--out", str(out / "p.csv")],
    }
    wanted = {}
    for name, words in ways.items():
        (folder / name).mkdir()
        run_command(words(folder / name), log)
        wanted[name] = contents(folder / name if name != "compact" else run / "compact")
    began = time.monotonic()
    while row.tried < count and time.monotonic() - began < seconds:
        name = random.choice(list(ways))
        out = folder / f"out{row.tried}"
        out.mkdir()
        where = run / "compact" if name == "compact" else out
        ends, wrong = until_finished(ways[name](out), where, log, random, 2, longest=2.0)
        found = contents(where)
        row.tried += 1
        if wrong or found != wanted[name]:
            other = [key for key in {**found, **wanted[name]} if found.get(key) != wanted[name].get(key)]
            row.lost.append(f"{name}, after {', '.join(ends)}: {wrong or other}")
        else:
            row.accepted += 1
    row.seconds = time.monotonic() - began
    return row


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a directory, but for records, which hold its path, and for parts of writers that were killed."""
    skipped = ("export.json", "README.md")
    paths = [p for p in folder.rglob("*") if p.is_file() and not str(p.relative_to(folder)).startswith(".")]
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths if p.name not in skipped}
