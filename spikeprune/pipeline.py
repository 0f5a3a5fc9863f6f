"""The stages of a run, in order: each one fit, one measurement, one record. What is finished is not done again."""

from __future__ import annotations

import hashlib
import json
import pickle
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import safetensors.torch
import torch
from lightning.pytorch.utilities import rank_zero_only

from spikeprune import build, processes, ranks
from spikeprune.callbacks.resume import ResumeState
from spikeprune.config import differences, read_resolved, to_yaml
from spikeprune.errors import InputError
from spikeprune.measure import check_teacher, measure_student, measure_teacher
from spikeprune.models.student import Student
from spikeprune.models.teacher import Teacher
from spikeprune.modules import TaskModule
from spikeprune.parts import Parts, prepare
from spikeprune.rundir import WEIGHTS, RunDir, read_verified, write_atomic, write_json, write_weights
from spikeprune.schema import Config
from spikeprune.size import parameters
from spikeprune.summary import data_facts, summarize_run


def run(config: Config) -> dict[str, Any]:
    """Run every stage that is not finished yet, and return the summary that was written to `summary.json`.

    Raises InputError for bad input before anything is written, for a run directory made with another configuration, and
    for a teacher that is no better than the majority class. On several devices every process goes through this, rank 0
    reads and writes, and returns.
    """
    build.quiet()
    with processes.started(config):
        return run_here(config)


def run_here(config: Config) -> dict[str, Any]:
    """`run` in one of its processes."""
    kernels = ranks.first(lambda: build.kernels(config))
    parts = ranks.first(lambda: prepare(config))
    directory = RunDir(config.run.dir)
    ranks.first(lambda: enter(directory, parts))
    say(parts.raw.banner)
    say(f"kernels: {kernels}{', CUDA graphs' if build.cuda_graphs(config) else ''}")
    stages = parts.active()
    for number, name in enumerate(stages, 1):
        if ranks.first(lambda name=name: directory.finished(name)):
            say(f"[{number}/{len(stages)}] {name}: finished earlier")
            continue
        say(f"[{number}/{len(stages)}] {name}: {parts.stage(name).epochs} epochs")
        L.seed_everything(config.seed + zlib.crc32(name.encode()) % 10_000, verbose=False)
        if name == "teacher":
            teach(parts, directory)
        else:
            learn(parts, directory, name, before(stages, name))
    return ranks.first(lambda: finish(parts, directory, {"kernels": kernels}))


def finish(parts: Parts, directory: RunDir, facts: dict[str, Any]) -> dict[str, Any]:
    """Write `summary.json` and `metrics.csv`."""
    summary = {**summarize_run(parts, directory), **facts}
    write_json(directory.summary, summary)
    directory.write_csv()
    return summary


def enter(directory: RunDir, parts: Parts) -> None:
    """Make the run directory, or make sure that it is this run's: same configuration, same data."""
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
    directory.create(need=bytes_needed(parts))
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
        student = ranks.first(lambda: load_student(directory, parent))
    module = build.student_module(parts, name, student, frozen)
    facts = fit(parts, directory, name, module)
    measured = measure_student(parts, module)
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
    try:
        with build.products(parts.config):
            trainer.fit(module, datamodule=build.stage_data(parts, name), ckpt_path=checkpoint if resumed else None)
    except SystemExit:  # Lightning's answer to Ctrl-C
        raise KeyboardInterrupt if trainer.interrupted else SystemExit from None
    ranks.same(digest(module), f"the network that {name} left")
    state = next(c for c in trainer.callbacks if isinstance(c, ResumeState))
    return {"steps": trainer.global_step, "seconds": round(state.seconds, 2)}


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


def load_student(directory: RunDir, name: str) -> Student:
    """The student that a finished stage left."""
    return rebuild(directory.stage(name), directory.weights(name))


def load_compact(directory: RunDir) -> Student:
    """The student that `spikeprune compact` left."""
    data = read_verified(directory.compact / WEIGHTS, directory.compact_record()["weights"])
    return rebuild(directory.compact, safetensors.torch.load(data))


def rebuild(folder: Path, weights: dict[str, torch.Tensor]) -> Student:
    student = Student(**json.loads((folder / "student.json").read_text()))
    student.load_state_dict(weights)
    return student


def record(parts: Parts, directory: RunDir, name: str, parent: str | None, facts: dict[str, Any]) -> None:
    made_from = None if parent is None else {"stage": parent, "weights": directory.record(parent)["weights"]}
    if name != "teacher" and parent is None:
        made_from = {"stage": "teacher", "weights": directory.record("teacher")["weights"]}
    stage = asdict(parts.stage(name))
    directory.finish(name, {"stage": name, "parent": made_from, "config": stage, "data": data_facts(parts), **facts})


def reopen(run_dir: str | Path, data_dir: str | None, progress: bool) -> tuple[RunDir, Parts]:
    """A run whose teacher is finished, with its own tokenizer; `data_dir`: a GLUE directory in place of its data."""
    build.quiet()
    directory = RunDir.open(run_dir)
    config = read_resolved(directory.config)
    config.run.progress = progress
    if data_dir is not None:
        config.data.source, config.data.dir = "dir", data_dir
    directory.record("teacher")  # an unfinished teacher is the clearer complaint
    return directory, prepare(config, tokenizer_from=str(directory.stage("teacher")))


def last_finished(parts: Parts, directory: RunDir) -> str:
    return [s for s in parts.active() if directory.finished(s)][-1]


def evaluate(
    run_dir: str | Path,
    stage: str | None = None,
    data_dir: str | None = None,
    progress: bool = True,
    compacted: bool = False,
) -> dict[str, Any]:
    """Measure a finished stage again from its saved checkpoint (the last one, unless `stage` names another), or with
    `compacted` what `spikeprune compact` left. `data_dir`: a GLUE directory in place of the run's own data.
    """
    directory, parts = reopen(run_dir, data_dir, progress)
    name = stage or last_finished(parts, directory)
    if compacted:
        name = directory.compact_record()["parent"]["stage"]
    directory.record(name)
    teacher = load_teacher(parts, directory)
    if name == "teacher":
        measured = measure_teacher(parts, teacher)
    else:
        student = load_compact(directory) if compacted else load_student(directory, name)
        measured = measure_student(parts, build.student_module(parts, name, student, teacher))
    facts = {"run": str(run_dir), "task": parts.config.task, "stage": name, "compacted": compacted}
    return {**facts, "data": data_facts(parts), **measured}


@rank_zero_only
def say(line: str) -> None:
    print(line, flush=True)
