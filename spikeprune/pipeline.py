"""The stages of a run, in order: each one fit, one measurement, one record. What is finished is not done again."""

from __future__ import annotations

import hashlib
import json
import pickle
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import safetensors.torch
import torch
from lightning.pytorch.utilities import rank_zero_only

from spikeprune import build, processes, ranks, signals, tracking
from spikeprune.callbacks.joint import JointPruning, cost_in_unit
from spikeprune.callbacks.resume import ResumeState
from spikeprune.config import differences, read_resolved, to_yaml
from spikeprune.errors import InputError
from spikeprune.lock import RunLock
from spikeprune.measure import check_teacher, measure_student, measure_teacher
from spikeprune.models.alter import altered, deaden
from spikeprune.models.compact import restored
from spikeprune.models.student import Student
from spikeprune.models.teacher import Teacher
from spikeprune.modules import TaskModule
from spikeprune.parts import Parts, prepare
from spikeprune.report.table import budget_line
from spikeprune.rundir import WEIGHTS, RunDir, read_verified, write_atomic, write_json, write_weights
from spikeprune.schema import Config
from spikeprune.sharing import shared_stages, take_over
from spikeprune.size import parameters
from spikeprune.summary import data_facts, summarize_run


def run(config: Config) -> dict[str, Any]:
    """Run every stage that is not finished yet, and return the summary that was written to `summary.json`.

    Raises InputError for bad input before anything is written, for a run directory made with another configuration or
    in use by another run, and for a teacher that is no better than the majority class. On several devices every process
    goes through this, rank 0 reads and writes, and returns.
    """
    build.quiet()
    with processes.started(config):
        return run_here(config)


def run_here(config: Config) -> dict[str, Any]:
    """`run` in one of its processes."""
    kernels = ranks.first(lambda: build.kernels(config))
    mode = ranks.first(lambda: tracking.chosen_mode(config))
    parts = ranks.first(lambda: prepare(config))
    directory = RunDir(config.run.dir)
    shared, why = ranks.first(lambda: shared_stages(parts) if config.run.start_from else ([], ""))
    lock = RunLock(directory.path)
    with signals.kept():
        try:
            if ranks.first(lambda: begin(parts, directory, lock)):
                say(f"{directory.path}: is finished, nothing is run again")
                return ranks.first(lambda: json.loads(directory.summary.read_text()))
            with tracking.tracked(config, directory, mode, parts.active()):
                return run_begun(parts, directory, kernels, shared, why)
        finally:
            lock.release()


def run_begun(parts: Parts, directory: RunDir, kernels: str, shared: list[str], why: str) -> dict[str, Any]:
    """Say what is run, take over the stages that are shared, and run the rest."""
    config = parts.config
    say(parts.raw.banner)
    say(f"kernels: {kernels}{', CUDA graphs' if build.cuda_graphs(config) else ''}")
    if config.run.products != "float":
        say(f"products: {config.run.products} in what is measured, where weights are quantized")
    if shared and (taken := ranks.first(lambda: take_over(parts, directory, shared))):
        say(f"taken over from {config.run.start_from}: {', '.join(taken)}{f' (then {why})' if why else ''}")
    return run_stages(parts, directory, kernels)


def run_stages(parts: Parts, directory: RunDir, kernels: str) -> dict[str, Any]:
    """Every stage that is not finished, then `summary.json`. Raises Stopped where a signal asks for it."""
    stages = parts.active()
    for number, name in enumerate(stages, 1):
        if ranks.first(lambda name=name: directory.finished(name)):
            say(f"[{number}/{len(stages)}] {name}: finished earlier")
            continue
        if signal := ranks.first(signals.received):
            raise signals.Stopped(signal)
        say(f"[{number}/{len(stages)}] {name}: {parts.stage(name).epochs} epochs")
        L.seed_everything(parts.config.seed + zlib.crc32(name.encode()) % 10_000, verbose=False)
        if name == "teacher":
            teach(parts, directory)
        else:
            learn(parts, directory, name, before(stages, name))
        tracking.stage_done(directory, name, stages)
    return ranks.first(lambda: finish(parts, directory, {"kernels": kernels}))


def finish(parts: Parts, directory: RunDir, facts: dict[str, Any]) -> dict[str, Any]:
    """Write `summary.json` and `metrics.csv`."""
    summary = {**summarize_run(parts, directory), **facts}
    write_json(directory.summary, summary)
    directory.write_csv()
    tracking.finished(parts.config, directory, summary)
    return summary


def begin(parts: Parts, directory: RunDir, lock: RunLock) -> bool:
    """Take the run directory for this run, made if there is none; the lock comes before anything else is written.
    Returns whether nothing is left to do."""
    if not directory.config.is_file():
        directory.create(need=bytes_needed(parts))
    if lock.take():
        say(lock.takeover)
    enter(directory, parts)
    return directory.complete(parts.active())


def enter(directory: RunDir, parts: Parts) -> None:
    """Begin a run in the directory, or make sure that it is this run's: same configuration, same data."""
    if directory.config.is_file():
        changed = differences(read_resolved(directory.config), parts.config)
        if changed:
            raise InputError(
                f"run.dir: {directory.path} was started with another configuration; use another run.dir or the old "
                "values:\n" + "\n".join(f"  {line}" for line in changed)
            )
        made_from = json.loads((directory.path / "data.json").read_text())
        if made_from["fingerprint"] != parts.raw.fingerprint:
            raise InputError(
                f"run.dir: {directory.path} was started on other data ({made_from['origin']}, fingerprint "
                f"{made_from['fingerprint']}, now {parts.raw.fingerprint}); use another run.dir"
            )
        return
    write_json(directory.path / "data.json", data_facts(parts))
    write_atomic(directory.config, to_yaml(parts.config))


def bytes_needed(parts: Parts) -> int:
    """Upper bound of what a run writes: weights of each stage, and a resume checkpoint with Adam's two moments twice,
    since its predecessor goes only when it is whole."""
    weights = 4 * parameters(shape=build.teacher_shape(parts)).total
    return weights * (len(parts.active()) + 2 * 3) + 5_000_000


def before(stages: list[str], name: str) -> str | None:
    """The student stage that `name` goes on from; None for the first."""
    students = [s for s in stages if s != "teacher"]
    index = students.index(name)
    return students[index - 1] if index else None


def teach(parts: Parts, directory: RunDir) -> None:
    """Fine-tune the teacher, measure it, and stop the run if it has learnt nothing."""
    module = build.teacher_module(parts, ranks.first(lambda: build.teacher(parts)))
    facts = fit(parts, directory, "teacher", module) if parts.stage("teacher").epochs else {"steps": 0, "seconds": 0.0}
    measured = measure_teacher(parts, module.teacher)
    ranks.first(lambda: check_teacher(parts, measured))
    ranks.first(lambda: leave_teacher(parts, directory, module.teacher, {**measured, **facts}))


def leave_teacher(parts: Parts, directory: RunDir, teacher: Teacher, facts: dict[str, Any]) -> None:
    folder = directory.make_stage("teacher")
    bert = teacher.bert
    bert.config.architectures = [type(bert).__name__]
    bert.config.save_pretrained(folder)
    parts.tokenizer.save_pretrained(folder)
    sha = write_weights(folder / WEIGHTS, bert.state_dict())
    record(parts, directory, "teacher", None, {**facts, "weights": sha})


def learn(parts: Parts, directory: RunDir, name: str, parent: str | None) -> None:
    """One stage of the student: from its parent's weights, or calibrated from the teacher, to its own record."""
    frozen = ranks.first(lambda: load_teacher(parts, directory))
    if parent is None:
        batch = parts.data.calibration_batches(parts.config.student.calibration, parts.config.seed)
        student = ranks.first(lambda: build.student(parts, frozen, batch))
    else:
        student = ranks.first(lambda: load_student(directory, parent, parts.config.compress.weights))
    module = build.student_module(parts, name, student, frozen)
    facts = fit(parts, directory, name, module)
    budget = facts.pop("budget", None)
    measured = measure_student(parts, module, parts.config.run.products if student.quantized == 1 else "float")
    if budget:
        dense = ranks.first(lambda: directory.record("teacher")["cost"])
        facts["budget"] = budget.report(cost_in_unit(budget.target, measured["cost"], dense))
        say(budget_line(facts["budget"]))
    ranks.first(lambda: leave_student(parts, directory, name, parent, student, {**measured, **facts}))


def leave_student(
    parts: Parts, directory: RunDir, name: str, parent: str | None, student: Student, facts: dict[str, Any]
) -> None:
    folder = directory.make_stage(name)
    write_json(folder / "student.json", build.student_values(parts))
    sha = write_weights(folder / WEIGHTS, student.state_dict())
    record(parts, directory, name, parent, {**facts, "weights": sha})


def fit(parts: Parts, directory: RunDir, name: str, module: TaskModule) -> dict[str, Any]:
    """One `Trainer.fit`, from the stage's last checkpoint if it was interrupted."""
    done = ranks.first(lambda: {s: directory.record(s)["steps"] for s in parts.active() if directory.finished(s)})
    trainer = build.trainer(parts, name, directory, offset=sum(done.values()))
    checkpoint = directory.resume(name)
    resumed = ranks.first(checkpoint.is_file)
    step = ranks.first(lambda: resume_step(checkpoint)) if resumed else 0
    ranks.first(lambda: directory.rewind_metrics(done, name, step))
    if resumed:
        say(f"goes on from step {step}")
        tracking.replay(directory, name)
    try:
        with build.products(parts.config):
            trainer.fit(module, datamodule=build.stage_data(parts, name), ckpt_path=checkpoint if resumed else None)
    except SystemExit:  # Lightning's answer to Ctrl-C
        raise KeyboardInterrupt if trainer.interrupted else SystemExit from None
    ranks.same(digest(module), f"the network that {name} left")
    state = next(c for c in trainer.callbacks if isinstance(c, ResumeState))
    budget = next((c for c in trainer.callbacks if isinstance(c, JointPruning)), None)
    facts = {"steps": trainer.global_step, "seconds": round(state.seconds, 2)}
    return {**facts, "budget": budget} if budget else facts


def digest(module: TaskModule) -> str:
    """sha256 of a module's tensors where processes must agree on them; alone there is nothing to compare."""
    if ranks.world() == 1:
        return ""
    found = hashlib.sha256()
    for tensor in module.state_dict().values():
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def resume_step(checkpoint: Path) -> int:
    """Optimizer steps made when the checkpoint was written. Raises InputError for a damaged file."""
    try:
        return torch.load(checkpoint, map_location="cpu", weights_only=True)["global_step"]
    except (RuntimeError, EOFError, KeyError, pickle.UnpicklingError):
        raise InputError(f"{checkpoint}: is damaged; remove it, and the stage begins again") from None


def load_teacher(parts: Parts, directory: RunDir) -> Teacher:
    """The teacher as its stage left it, frozen."""
    directory.verified("teacher")
    return Teacher.load(directory.stage("teacher"), classes=parts.task.num_labels).freeze()


def load_student(directory: RunDir, name: str, weights: str | None = None) -> Student:
    """The student that a finished stage left. `weights`: what it is to be quantized to, where that is another kind than
    the stage knew of, which quantized nothing yet."""
    return rebuild(directory.stage(name), directory.weights(name), weights)


def load_compact(directory: RunDir) -> Student:
    """The student that `spikeprune compact` left."""
    data = read_verified(directory.compact / WEIGHTS, directory.compact_record()["weights"])
    values = json.loads((directory.compact / "student.json").read_text())
    return restored(values, safetensors.torch.load(data))


def rebuild(folder: Path, state: dict[str, torch.Tensor], weights: str | None = None) -> Student:
    values = json.loads((folder / "student.json").read_text())
    if weights not in (None, values["weights"]) and not state.get("strength", 0.0):
        values["weights"] = weights
        state = {key: value for key, value in state.items() if key != "strength"}
        state |= {} if weights == "float" else {"strength": torch.zeros(())}
    student = Student(**values)
    student.load_state_dict(state)
    return student


def record(parts: Parts, directory: RunDir, name: str, parent: str | None, facts: dict[str, Any]) -> None:
    made_from = None if parent is None else {"stage": parent, "weights": directory.record(parent)["weights"]}
    if name != "teacher" and parent is None:
        made_from = {"stage": "teacher", "weights": directory.record("teacher")["weights"]}
    stage = asdict(parts.stage(name))
    directory.finish(name, {"stage": name, "parent": made_from, "config": stage, "data": data_facts(parts), **facts})


def reopen(
    run_dir: str | Path, data_dir: str | None, progress: bool, overrides: Sequence[str] = ()
) -> tuple[RunDir, Parts]:
    """A run whose teacher is finished, with its own tokenizer; `data_dir`: a GLUE directory in place of its data.
    `overrides`: of the keys that a measurement may change."""
    build.quiet()
    directory = RunDir.open(run_dir)
    config = read_resolved(directory.config, overrides)
    config.run.progress = progress
    if data_dir is not None:
        config.data.source, config.data.dir = "dir", data_dir
    directory.record("teacher")  # an unfinished teacher is the clearer complaint
    return directory, prepare(config, tokenizer_from=str(directory.stage("teacher")))


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


def last_finished(parts: Parts, directory: RunDir) -> str:
    return [s for s in parts.active() if directory.finished(s)][-1]


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
        measured = measure_student(parts, build.student_module(parts, name, student, teacher), chosen)
    facts = {"run": str(run_dir), "task": parts.config.task, "stage": name, "compacted": compacted}
    if overrides:
        facts["changed"] = list(overrides)
    return {**facts, "data": data_facts(parts), **measured}


@rank_zero_only
def say(line: str) -> None:
    print(line, flush=True)
