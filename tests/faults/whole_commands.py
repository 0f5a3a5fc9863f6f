"""Hostile input to commands in processes of their own."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import torch
import yaml
from children import attempt, run_command
from micro import GLUE, micro, only, write_sst2

import spikeprune
from faults import mutation
from faults.campaign import Row
from faults.hostile_input import dumped, word
from faults.hostile_models import RUN, copy_of, finished_run, mutate, small_bert
from faults.kills import tiny_sweep
from spikeprune.config.load import load, to_yaml
from spikeprune.experiment import streams
from spikeprune.experiment.run_directory import RunDirectory


def whole_commands(folder: Path, seed: int, count: int, seconds: float) -> Row:
    """Inputs of several kinds to commands in processes of their own: exit code 0 or 2, and no traceback."""
    row, began, log = Row("whole commands", seed), time.monotonic(), folder / "log"
    ways = command_makers(folder)
    while row.tried < count and time.monotonic() - began < seconds:
        random = Random(f"{row.campaign} {seed} {row.tried}")
        kind = list(ways)[row.tried % len(ways)]
        log.unlink(missing_ok=True)
        words = [part.replace("\0", "") for part in ways[kind](random)]
        before = load_model if kind == "exported model" else None
        code = run_command(words, log, None, before, (words[0],) if before else ())
        said = log.read_text(errors="replace")
        failed = code == 1 and kind == "sweep file" and "trial failed; see" in said  # not the sweep's own fault
        row.refused, row.accepted = row.refused + (code == 2 or failed), row.accepted + (code == 0)
        if not (code in (0, 2) or failed) or "Traceback" in said:
            row.lost.append(f"{row.tried}, {kind}: exit code {code}: {said[-200:]}")
        row.tried += 1
    row.seconds, row.note = time.monotonic() - began, f"in turn {', '.join(ways)}"
    return row


def command_makers(folder: Path) -> dict[str, Callable[[Random], list[str]]]:
    """Kind of input -> what writes one and returns the words of a command that reads it."""
    run, glue, bert = finished_run(folder), write_sst2(folder / "glue", 12, 6), small_bert(folder / "bert")
    tree, texts = yaml.safe_load(to_yaml(load(GLUE, ["preset=tiny", "task=sst2"]))), b"text,label\na good film,1\n"
    trials = json.loads(tiny_sweep(folder / "sweep").read_text())
    given, file = folder / "given", folder / "file"

    def data(random: Random) -> list[str]:
        (folder / "texts.csv").write_bytes(mutation.of_bytes(random, texts))
        return ["predict", str(run.path), "--file", str(folder / "texts.csv")]

    def configuration(random: Random) -> list[str]:
        file.write_bytes(mutation.of_bytes(random, dumped(mutation.of_tree(random, tree))))
        return ["config", str(file)]

    def command_line(random: Random) -> list[str]:
        return [random.choice(("config", "evaluate", "compact", "predict")), *(word(random) for _ in range(3))]

    def run_directory(random: Random) -> list[str]:
        copy_of(run.path, given)
        mutate(random, random.choice(sorted(path for path in given.rglob("*") if path.is_file())))
        return ["predict", str(given), "a film", *random.choice(([], ["--compact"]))]

    def sweep(random: Random) -> list[str]:
        shutil.rmtree(folder / "trials", ignore_errors=True)
        file.write_bytes(dumped(mutation.of_tree(random, trials)))
        return ["sweep", str(file), "--local", "--trials", "1", "--jobs", "1", "--dir", str(folder / "trials")]

    def teacher(random: Random) -> list[str]:
        shutil.rmtree(folder / "new", ignore_errors=True)
        mutate(random, random.choice(sorted(copy_of(bert, given).iterdir())))
        short = ["stages.teacher.epochs=1", "data.replace_words=0", f"teacher.checkpoint={given}"]
        return ["train", str(GLUE), *micro(folder / "new", glue), *only(), *short]

    run_command(["export", str(run.path), "--to", "hf", str(folder / "exported")], folder / "log")
    killed = [*micro(folder / "killed", folder / "glue-of-run"), *RUN, "run.checkpoint_every=3"]
    attempt(killed, folder / "log", ("spatial", 5))
    saved = torch.load(RunDirectory(folder / "killed").resume("spatial"), weights_only=True)

    def exported(random: Random) -> list[str]:
        mutate(random, random.choice(sorted(copy_of(folder / "exported", given).iterdir())))
        return [str(given)]

    def checkpoint(random: Random) -> list[str]:
        file = RunDirectory(copy_of(folder / "killed", given)).resume("spatial")
        if random.random() < 0.5:
            mutate(random, file)
        else:
            torch.save(mutation.of_state(random, saved), file)
        return ["train", str(GLUE), *killed, f"run.dir={given}"]

    found = {"data file": data, "configuration": configuration, "command line": command_line}
    found |= {"run directory": run_directory, "sweep file": sweep, "teacher checkpoint": teacher}
    return {**found, "exported model": exported, "resume checkpoint": checkpoint}


def load_model(folder: str) -> None:
    """In a process of its own: what `spikeprune.load` makes of a directory, with the exit codes of a command."""
    sys.exit(streams.exit_code(lambda: 0 if spikeprune.load(folder) else 1))
