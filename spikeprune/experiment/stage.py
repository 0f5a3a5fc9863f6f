"""One stage of a run: one fit, one measurement, one record."""

from __future__ import annotations

import hashlib
import struct
import zipfile
import zlib
from pathlib import Path
from pickletools import genops
from typing import Any

import torch

from spikeprune.config.derived import runs
from spikeprune.errors import InputError, out_of_memory
from spikeprune.experiment import dev_predictions
from spikeprune.experiment.build import arithmetic, modules, networks, trainers
from spikeprune.experiment.checkpoints import load_student, load_teacher, save_student, save_teacher
from spikeprune.experiment.context import RunContext
from spikeprune.experiment.measurement import check_teacher, measure_student, measure_teacher, silent_layers
from spikeprune.experiment.run_directory import RunDirectory
from spikeprune.experiment.terminal import print_once
from spikeprune.models.compaction import compacted, scatter_into
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.tensors import misfit, not_finite
from spikeprune.pruning.budget_report import cost_in_unit
from spikeprune.report.tables import budget_line
from spikeprune.training import distributed
from spikeprune.training.callbacks.budget_target import BudgetTarget
from spikeprune.training.callbacks.resume import ResumeState
from spikeprune.training.modules.task import TaskModule

CLASSES = ("GLOBAL", "INST")  # operations of a pickle that name one
LONGEST_NAME = 500


def train_teacher(context: RunContext, directory: RunDirectory) -> None:
    """Fine-tune the teacher, measure it, and stop the run if it is no better than a constant prediction."""
    teacher = distributed.first(lambda: networks.teacher(context))
    if teacher.note:
        print_once(teacher.note)
    module = modules.teacher_module(context, teacher)
    facts = (
        fit(context, directory, "teacher", module) if context.stage("teacher").epochs else {"steps": 0, "seconds": 0.0}
    )
    module = modules.teacher_module(context, module.teacher)
    measured = measure_teacher(context, module)
    distributed.first(lambda: check_teacher(context, measured))
    predictions = dev_predictions.predictions_of(context, module)
    distributed.first(lambda: dev_predictions.keep(directory, "teacher", predictions))
    distributed.first(lambda: save_teacher(context, directory, module.teacher, {**measured, **facts}))


def train_student(context: RunContext, directory: RunDirectory, name: str, parent: str | None) -> None:
    """One stage of the student: from its parent's weights, or calibrated from the teacher, to its own record."""
    frozen = distributed.first(lambda: load_teacher(context, directory))
    if parent is None:
        batch = context.data.calibration_batches(context.config.student.calibration, context.config.seed)
        student = distributed.first(lambda: networks.student(context, frozen, batch))
    else:
        student = distributed.first(lambda: load_student(directory, parent, context.config))
    trained = compacted(student) if masks_are_final(context, name, student) else student
    module = modules.student_module(context, name, trained, frozen)
    facts = fit(context, directory, name, module)
    if trained is not student:
        scatter_into(trained, student.to(trained.classifier.weight))  # of the precision that it was trained in
        module = modules.student_module(context, name, student, frozen)
    budget = facts.pop("budget", None)
    measured = measure_student(context, module, name)
    predictions = dev_predictions.predictions_of(context, module)
    distributed.first(lambda: dev_predictions.keep(directory, name, predictions))
    if silent := silent_layers(measured):
        print_once(f"{name}: no spike at all in {', '.join(silent)}, so nothing passes there; lower its lr or losses")
    if budget:
        teacher = distributed.first(lambda: directory.record("teacher"))
        facts["budget"] = budget.report(cost_in_unit(budget.target, measured, teacher, budget.model))
        print_once(budget_line(facts["budget"]))
    distributed.first(lambda: save_student(context, directory, name, parent, student, {**measured, **facts}))


def masks_are_final(context: RunContext, name: str, student: SpikingBert) -> bool:
    """Whether a stage can train the compacted student, which is faster: units are pruned, the stage neither prunes more
    nor compares heads with the teacher's, and no layer is empty."""
    stage, masks = context.stage(name), (student.heads, student.ffn)
    removes = name in ("spatial", "budget") or (name == "finetune" and runs(context.config, "budget"))
    return (
        not removes
        and not stage.losses.scores
        and any(not mask.all() for mask in masks)
        and all(mask.any(1).all() for mask in masks)
    )


def fit(context: RunContext, directory: RunDirectory, name: str, module: TaskModule) -> dict[str, Any]:
    """One `Trainer.fit`, from the stage's last checkpoint if it was interrupted."""
    done = distributed.first(
        lambda: {s: directory.record(s)["steps"] for s in context.active() if directory.finished(s)}
    )
    trainer = trainers.trainer(context, name, directory, offset=sum(done.values()))
    checkpoint = directory.resume(name)
    resumed = distributed.first(checkpoint.is_file)
    step = distributed.first(lambda: resume_step(checkpoint, module)) if resumed else 0
    distributed.first(lambda: directory.rewind_metrics(done, name, step))
    if resumed:
        print_once(f"resumed from step {step}")
        context.tracker.stage_resumed(directory, name)
    try:
        with arithmetic.products(context.config):
            trainer.fit(
                module,
                datamodule=modules.stage_data(context, name),
                ckpt_path=checkpoint if resumed else None,
                weights_only=True,
            )
    except SystemExit:  # Lightning's reaction to Ctrl-C
        raise KeyboardInterrupt if trainer.interrupted else SystemExit from None
    distributed.same(digest(module), f"the network that {name} left")
    state = next(c for c in trainer.callbacks if isinstance(c, ResumeState))
    budget = next((c for c in trainer.callbacks if isinstance(c, BudgetTarget)), None)
    facts = {"steps": trainer.global_step, "seconds": round(state.seconds, 2)}
    return {**facts, "budget": budget} if budget else facts


def digest(module: TaskModule) -> str:
    """sha256 of a module's tensors where processes must agree on them; alone there is nothing to compare."""
    if distributed.world() == 1:
        return ""
    found = hashlib.sha256()
    for tensor in module.state_dict().values():
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def resume_step(checkpoint: Path, module: TaskModule) -> int:
    """Optimizer steps made when the checkpoint was written. Raises InputError for a damaged file, for one of another
    network than the module's, and for weights that are not finite."""
    again = "remove it, and the stage begins again"
    saved = read_checkpoint(checkpoint, again)
    own = module.state_dict()
    own = {name: tensor for name, tensor in own.items() if name in saved["state_dict"] or not frozen(name, module)}
    if wrong := misfit(own, saved["state_dict"]):
        raise InputError(f"{checkpoint}: is of another network ({wrong}); {again}")
    if wrong := not_finite(saved["state_dict"]):
        raise InputError(f"{checkpoint}: {wrong[0]} is not finite; {again}")
    return saved["global_step"]


def frozen(name: str, module: TaskModule) -> bool:
    """Whether a tensor is the frozen teacher's, which a student's checkpoint leaves out."""
    return name.startswith("teacher.") and hasattr(module, "student")


def read_checkpoint(path: Path, remedy: str) -> dict[str, Any]:
    """A checkpoint of Lightning's. Raises InputError for a damaged file, another kind of file and low memory."""
    if not whole(path):
        raise InputError(f"{path}: is damaged; {remedy}")
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever it stumbles over
        if out_of_memory(error):
            raise InputError(f"{path}: there is not enough memory to load it; free some, and start again") from None
        saved = None
    if not isinstance(saved, dict) or not is_step(saved.get("global_step")) or not is_state(saved.get("state_dict")):
        raise InputError(f"{path}: is no checkpoint of a stage; {remedy}")
    return saved


def is_step(value: Any) -> bool:
    return isinstance(value, int) and value >= 0


def is_state(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(tensor, torch.Tensor) for tensor in value.values())


def whole(path: Path) -> bool:
    """Whether all parts of a file of torch.save, a zip archive, have the checksums that they were written with; torch
    itself loads a part that has changed. A class with an endless name, over which torch would take minutes, is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                return False
            pickled = b"".join(archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
        return all(len(str(name)) < LONGEST_NAME for op, name, _ in genops(pickled) if op.name in CLASSES)
    except (zipfile.BadZipFile, RuntimeError, EOFError, ValueError, OSError, zlib.error, struct.error):
        return False
