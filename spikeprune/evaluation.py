"""A finished run opened again: its networks measured as they are, or with what needs no training changed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spikeprune.builders.modules import student_module
from spikeprune.config import read_resolved
from spikeprune.errors import InputError
from spikeprune.measure import measure_student, measure_teacher
from spikeprune.models.alter import altered, deaden
from spikeprune.models.student import Student
from spikeprune.parts import Parts, prepare
from spikeprune.rundir import RunDir
from spikeprune.saved import load_compact, load_student, load_teacher
from spikeprune.summary import data_facts
from spikeprune.terminal import quiet


def evaluate(
    run_dir: str | Path,
    stage: str | None = None,
    data_dir: str | None = None,
    progress: bool = True,
    compacted: bool = False,
    products: str | None = None,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Measure a finished stage again from its saved checkpoint (the last one, unless `stage` names another), or with
    `compacted` what `spikeprune compact` left. `data_dir`: a GLUE directory in place of the run's own data. `products`:
    float or int8 in place of run.products. `overrides`: `key=value` of the keys in `config.MEASURING`. Raises
    InputError where int8 products cannot be used.
    """
    directory, parts = reopen(run_dir, data_dir, progress, overrides)
    name = stage or last_finished(parts, directory)
    if compacted:
        name = directory.compact_record()["parent"]["stage"]
    directory.record(name)
    idle = [key for key in overrides if key.startswith(("student.", "time."))] if name == "teacher" else []
    if idle:
        raise InputError(f"{' '.join(idle)}: the teacher does not spike; name a stage of the student")
    teacher = load_teacher(parts, directory)
    if name == "teacher" and products == "int8":
        raise InputError(f"{run_dir}: int8 products are for spikes, and the teacher has none; name another stage")
    if name == "teacher":
        measured = measure_teacher(parts, teacher)
    else:
        student = load_compact(directory) if compacted else load_student(directory, name)
        student = untrained_changes(student, parts, directory)
        chosen = products or (parts.config.run.products if student.quantized == 1 else "float")
        if chosen == "int8" and (problem := student.no_integers()):
            raise InputError(f"{run_dir}: int8 products of stage {name} need {problem}; use float ones")
        measured = measure_student(parts, student_module(parts, name, student, teacher), name, chosen)
    facts = {"run": str(run_dir), "task": parts.config.task, "stage": name, "compacted": compacted}
    if overrides:
        facts["changed"] = list(overrides)
    return {**facts, "data": data_facts(parts), **measured}


def reopen(
    run_dir: str | Path, data_dir: str | None, progress: bool, overrides: Sequence[str] = ()
) -> tuple[RunDir, Parts]:
    """A run whose teacher is finished, with its own tokenizer; `data_dir`: a GLUE directory in place of its data.
    `overrides`: of the keys that a measurement may change."""
    quiet()
    directory = RunDir.open(run_dir)
    config = read_resolved(directory.config, overrides)
    config.run.progress = progress
    if data_dir is not None:
        config.data.source, config.data.dir = "dir", data_dir
    directory.record("teacher")  # an unfinished teacher is the clearer complaint
    return directory, prepare(config, tokenizer_from=str(directory.stage("teacher")))


def last_finished(parts: Parts, directory: RunDir) -> str:
    return [s for s in parts.active() if directory.finished(s)][-1]


def untrained_changes(student: Student, parts: Parts, directory: RunDir) -> Student:
    """The student with what overrides have changed of it since it was trained: its coding, its dead zones."""
    now, then = parts.config.student, read_resolved(directory.config).student
    changes: dict[str, str] = {}
    if now.coding != then.coding:
        changes["coding"] = now.coding
    if (now.dead_zone, now.dead_zone_per) != (then.dead_zone, then.dead_zone_per):
        changes["dead_zone"] = now.dead_zone_per if now.dead_zone else "none"
    if not changes:
        return student
    made = altered(student, **changes)
    if "dead_zone" in changes and now.dead_zone:
        deaden(made, parts.data.calibration_batches(now.calibration, parts.config.seed), now.dead_zone)
    return made
