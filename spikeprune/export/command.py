"""`spikeprune export`: a finished stage's student, compacted, in one of FORMATS.

An exporter is a function `(student, tokenizer, facts, directory)`. The student is compacted and in evaluation mode,
`facts` say where it comes from and give the dev split to check the files on, the directory is empty and becomes the
user's only after the exporter has returned. It returns what its check found, as values of JSON. Raises InputError for a
student that the format has no room for.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from spikeprune.config.load import read_resolved
from spikeprune.config.reference import words_of
from spikeprune.errors import InputError, known
from spikeprune.experiment.build.modules import student_module
from spikeprune.experiment.checkpoints import load_compact, load_student, load_teacher
from spikeprune.experiment.context import RunContext
from spikeprune.experiment.evaluation import reopen
from spikeprune.experiment.measurement import measure_student
from spikeprune.experiment.run_directory import RunDirectory
from spikeprune.experiment.summary import commit, data_facts, versions
from spikeprune.export import c, hugging_face, onnx_file
from spikeprune.export.facts import Facts
from spikeprune.export.licence import teacher_of
from spikeprune.files.atomic import absent, new_directory, write_json
from spikeprune.models.compaction import compact
from spikeprune.models.modeling import SpikingBert

Exporter = Callable[[SpikingBert, Any, Facts, Path], dict[str, Any]]
FORMATS: dict[str, Exporter] = {"hf": hugging_face.write, "onnx": onnx_file.write, "c": c.write}
RECORD = "export.json"


def export(
    run_dir: str | Path,
    to: str,
    target: str | Path,
    *,
    stage: str | None = None,
    compacted: bool = False,
    data_dir: str | None = None,
) -> dict[str, Any]:
    """Write a finished stage's student (the last one's, unless `stage` names another; with `compacted` the one that
    `spikeprune compact` left) without its masked units to the new directory `target`, with the record `export.json`,
    and return the record. `data_dir`: a GLUE directory in place of the run's own data.

    Raises InputError for a directory that exists, a stage that is not finished, and an unknown format.
    """
    known("export format", to, FORMATS)
    absent(Path(target))
    directory, context, student, facts = opened(run_dir, stage, compacted, data_dir)
    words = ["spikeprune", "export", str(run_dir), "--to", to, str(target)]
    words += ["--stage", stage] if stage else []
    facts = replace(facts, command=shlex.join(words + ["--compact"] * compacted))
    with new_directory(Path(target)) as folder:
        checked = FORMATS[to](student, context.tokenizer, facts, folder)
        record = {
            "format": to,
            "command": facts.command,
            "run": str(run_dir),
            "stage": facts.stage,
            "weights": directory.record(facts.stage)["weights"],
            "task": context.task.name,
            "data": dict(facts.data),
            "bytes": {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
            "check": checked,
            "commit": commit(),
            "versions": versions(),
        }
        write_json(folder / RECORD, record)
    return {**record, "directory": str(target)}


def opened(
    run_dir: str | Path, stage: str | None, compacted: bool, data_dir: str | None
) -> tuple[RunDirectory, RunContext, SpikingBert, Facts]:
    """The run, the student to export, in evaluation mode, and its facts."""
    changed = RunDirectory.open(run_dir).compact_record()["changed"] if compacted else []
    directory, context = reopen(run_dir, data_dir, changed)
    name = directory.compact_record()["parent"]["stage"] if compacted else stage
    name = name or directory.last_student()
    record = directory.record(name)
    if name == "teacher":
        raise InputError(f"{run_dir}: the teacher is no spiking student; name a stage of the student")
    if compacted:
        student = load_compact(directory)
    else:
        student = compact(load_student(directory, name)).eval()
    if changed:  # the stage was measured without it
        teacher = load_teacher(context, directory)
        record = {**record, **measure_student(context, student_module(context, name, student, teacher), name)}
    facts = Facts(
        command="",
        trained=shlex.join(["spikeprune", "train", *words_of(read_resolved(directory.config)), f"run.dir={run_dir}"]),
        stage=name,
        task=context.task,
        data=data_facts(context),
        teacher=teacher_of(context.config.teacher.checkpoint),
        dense=directory.record("teacher"),
        record=record,
        dev=context.data.val_dataloader()[0].data,
        max_length=context.config.data.max_length,
    )
    return directory, context, student, facts
