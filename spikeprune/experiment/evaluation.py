"""A finished run opened again: its networks measured as they are, or with what needs no training changed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spikeprune.config.load import read_resolved
from spikeprune.config.schema import Config
from spikeprune.config.tasks import CUSTOM
from spikeprune.errors import InputError
from spikeprune.experiment import processes
from spikeprune.experiment.build.modules import student_module, teacher_module
from spikeprune.experiment.checkpoints import load_compact, load_student, load_teacher
from spikeprune.experiment.context import RunContext, prepare
from spikeprune.experiment.early_exit import check_early_exit, measure_early_exit
from spikeprune.experiment.measurement import measure_student, measure_teacher
from spikeprune.experiment.run_directory import RunDirectory
from spikeprune.experiment.summary import data_facts
from spikeprune.experiment.terminal import quiet
from spikeprune.experiment.timing import measured_ms
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.variants import calibrate_dead_zones, variant


def evaluate(
    run_dir: str | Path,
    stage: str | None = None,
    data_dir: str | None = None,
    compacted: bool = False,
    stepwise: bool = False,
    early_exit: bool = False,
    energy: bool = False,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Measure a finished stage again from its saved checkpoint (the last one, unless `stage` names another), or with
    `compacted` what `spikeprune compact` left. `data_dir`: a GLUE directory, or of a run on own data a file with the
    same columns, in place of the run's own data.
    `stepwise`: spikes are simulated step by step also where a closed form gives the same. `early_exit`: inference that
    stops once it is confident is measured too. `energy`: the student and dense networks are timed. `overrides`:
    `key=value` of the keys in `load.MEASURING`.

    Raises InputError where the teacher is asked for what only a student has, and as `check_early_exit`.
    """
    compact = RunDirectory.open(run_dir).compact_record() if compacted else {}
    changed = compact.get("changed", [])  # when it was made
    directory, context = reopen(run_dir, data_dir, [*changed, *overrides])
    name = compact["parent"]["stage"] if compacted else stage
    name = name or [name for name in context.active() if directory.finished(name)][-1]
    directory.record(name)
    idle = [key for key in overrides if key.startswith("student.")]
    idle += ["--stepwise"] * stepwise + ["--early-exit"] * early_exit + ["--energy"] * energy
    if idle and name == "teacher":
        raise InputError(f"{' '.join(idle)}: the teacher does not spike; name a stage of the student")
    teacher = load_teacher(context, directory)
    if name == "teacher":
        measured = measure_teacher(context, teacher_module(context, teacher))
    else:
        student = load_compact(directory) if compacted else load_student(directory, name)
        student = untrained_changes(student, context, read_resolved(directory.config, changed))
        if early_exit:
            check_early_exit(student, context.task)
        measured = measure_student(context, student_module(context, name, student, teacher, stepwise=stepwise), name)
        if early_exit:
            measured["dynamic"] = measure_early_exit(context, student)
        if energy:
            measured["measured_ms"] = measured_ms(context, student, teacher)
    facts = {"run": str(run_dir), "task": context.config.task, "main_metric": "+".join(context.task.main)}
    facts |= {"stage": name, "compacted": compacted}
    if overrides:
        facts["changed"] = list(overrides)
    return {**facts, "data": data_facts(context), **compared_data(directory, context), **measured}


def reopen(run_dir: str | Path, data_dir: str | None, overrides: Sequence[str] = ()) -> tuple[RunDirectory, RunContext]:
    """A run whose teacher is finished, with its own tokenizer; `data_dir`: in place of its data, see `evaluate`.
    `overrides`: of the keys that a measurement may change."""
    quiet()
    directory = RunDirectory.open(run_dir)
    config = read_resolved(directory.config, overrides)
    processes.check_devices(config.run.accelerator, devices=1)
    if data_dir is not None and config.task == CUSTOM:
        config.data.source, config.data.train_file, config.data.dev_file = "auto", data_dir, data_dir
        config.data.train_limit = None  # nothing is trained
    elif data_dir is not None:
        config.data.source, config.data.dir = "dir", data_dir
    directory.record("teacher")  # an unfinished teacher is the clearer complaint
    return directory, prepare(config, tokenizer_from=str(directory.stage("teacher")), known=directory.task())


def compared_data(directory: RunDirectory, context: RunContext) -> dict[str, Any]:
    """`same_data`: whether the data now are those that the run was made from; where not, `run_data` has those."""
    own = directory.data_facts()
    same = own["fingerprint"] == context.raw.fingerprint
    return {"same_data": same} if same else {"same_data": same, "run_data": own}


def untrained_changes(student: SpikingBert, context: RunContext, made_under: Config) -> SpikingBert:
    """The student with what overrides have changed of it since it was made: its coding, its dead zones."""
    now, then = context.config.student, made_under.student
    changes: dict[str, Any] = {}
    if now.coding != then.coding:
        changes["coding"] = now.coding
    if now.dead_zone != then.dead_zone:
        changes["dead_zone"] = bool(now.dead_zone)
    if not changes:
        return student
    made = variant(student, **changes)
    if "dead_zone" in changes and now.dead_zone:
        calibrate_dead_zones(
            made, context.data.calibration_batches(now.calibration, context.config.seed), now.dead_zone
        )
    return made
