"""`run.start_from`: a new run takes over another run's finished stages, as far as both have the same settings."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from spikeprune.config.derived import active_stages, runs
from spikeprune.config.load import differences, read_resolved
from spikeprune.config.schema import Config
from spikeprune.errors import InputError
from spikeprune.experiment.context import RunContext
from spikeprune.experiment.run_directory import WEIGHTS, RunDirectory

# Sections that decide every stage. Of `run` only keys that change numbers; of `data` neither general_kd's text nor the
# place of the task's data, whose fingerprint is compared.
COMMON = ("task", "seed", "data", "teacher")
STUDENT = ("student", "data.replace_words")  # … on every stage but the teacher's
RUN = ("run.accelerator", "run.devices", "run.num_nodes", "run.precision", "run.kernels", "run.deterministic")
CORPUS = ("data.corpus", "data.replace_words")
PLACES = ("data.source", "data.dir", "data.hub", "data.train_file", "data.dev_file")


def shared_stages(context: RunContext) -> tuple[list[str], str]:
    """The stages at the beginning of this run that `run.start_from` has finished under the same settings, and why the
    next one is not among them (empty where the other run simply has no more). None without `run.start_from`. Reads
    only.

    Raises InputError for a directory without a run, for other data, and where not even the first stage is the same.
    """
    if not context.config.run.start_from:
        return [], ""
    source = RunDirectory.open(context.config.run.start_from)
    theirs, mine = read_resolved(source.config), context.config
    fingerprint = source.data_facts()["fingerprint"]
    other = _changed(theirs, mine, (*COMMON, *RUN), but=(*CORPUS, *PLACES))
    if fingerprint != context.raw.fingerprint:
        other.append(f"data: fingerprint {fingerprint} → {context.raw.fingerprint}")
    if other:
        raise InputError(
            f"run.start_from = {source.path}: was made with other settings, so none of its stages are this run's:\n"
            + "\n".join(f"  {line}" for line in other)
        )
    same, why = _same_stages(theirs, mine)
    found = list(takewhile(source.finished, same))
    if not found:
        reason = "its first stage is not finished" if same else why
        raise InputError(f"run.start_from = {source.path}: none of its stages can be taken over: {reason}")
    return found, why if found == same else ""


def common_stages(theirs: Config, mine: Config) -> list[str]:
    """The first stages that two configurations on the same data have in common; reads no files."""
    if _changed(theirs, mine, (*COMMON, *RUN), but=CORPUS):
        return []
    return _same_stages(theirs, mine)[0]


def _same_stages(theirs: Config, mine: Config) -> tuple[list[str], str]:
    """The first stages with the same settings, and the difference of the next one."""
    found: list[str] = []
    for name, own in zip(active_stages(theirs), active_stages(mine), strict=False):
        why = f"{own} instead of {name}" if name != own else "; ".join(_stage_differences(theirs, mine, name))
        if why:
            return found, why
        found.append(name)
    return found, ""


def _stage_differences(theirs: Config, mine: Config, name: str) -> list[str]:
    sections = [f"stages.{name}", *(STUDENT if name != "teacher" else ())]
    if name == "finetune" and runs(mine, "budget"):
        sections.append("stages.budget")
    if "stages.budget" in sections:  # it aims at energy under this model
        sections.append("cost.model")
    if name == "general_kd":
        sections += CORPUS
    return _changed(theirs, mine, sections)


def _changed(theirs: Config, mine: Config, sections: Sequence[str], but: Sequence[str] = ()) -> list[str]:
    """`key: old → new` for each key of these sections whose value differs."""
    changed = [(key, change) for key, change in differences(theirs, mine, but).items()]
    return [f"{key}: {c}" for key, c in changed if any(f"{key}.".startswith(f"{section}.") for section in sections)]


def take_over(context: RunContext, directory: RunDirectory, stages: Sequence[str]) -> list[str]:
    """Put the other run's `stages` into this one's directory, records last; returns those copied now. Weights are
    hard-linked where the file system allows it (a finished file never changes), else copied.

    Raises InputError for weights whose sha256 is not their record's.
    """
    source, taken = RunDirectory(context.config.run.start_from), []
    for name in stages:
        if directory.finished(name):
            continue
        source.verified(name)
        logged = [r for r in directory.read_metrics() if r["stage"] != name]
        logged += [r for r in source.read_metrics() if r["stage"] == name]
        directory.write_metrics(logged)
        folder = directory.make_stage(name)
        for path in sorted(source.stage(name).iterdir()):
            if path.name == WEIGHTS:
                _link(path, folder / path.name)
            elif path.is_file() and path.suffix != ".ckpt" and path.name != "record.json":
                shutil.copyfile(path, folder / path.name)
        record = led_by(context.config.cost.model, name, source.record(name))
        directory.finish(name, {**record, "taken_from": str(source.path)})
        taken.append(name)
    return taken


def led_by(model: str, name: str, record: dict[str, Any]) -> dict[str, Any]:
    """A stage's record whose `energy_pj` is under `model`, whatever model the run that made it led with."""
    network = "teacher" if name == "teacher" else "student"
    return {**record, "cost": {**record["cost"], "energy_pj": record["energy"][model][network]}}


def _link(path: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(path, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(path, target)
