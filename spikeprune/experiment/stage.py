"""One stage of a run: one fit, one measurement, one record."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from spikeprune import distributed
from spikeprune.config.derived import runs
from spikeprune.errors import InputError, out_of_memory
from spikeprune.experiment import dev_predictions
from spikeprune.experiment.build import arithmetic, modules, networks, trainers
from spikeprune.experiment.checkpoints import load_student, load_teacher, save_student, save_teacher
from spikeprune.experiment.context import RunContext
from spikeprune.experiment.measurement import (
    check_teacher,
    measure_student,
    measure_teacher,
    no_better_than_constant,
    silent_layers,
)
from spikeprune.experiment.resume_checkpoint import AGAIN, resume_step
from spikeprune.experiment.run_directory import RunDirectory
from spikeprune.experiment.terminal import print_once
from spikeprune.models.compaction import compacted, scatter_into
from spikeprune.models.modeling import SpikingBert
from spikeprune.pruning.budget import cost_in_unit
from spikeprune.report.tables import budget_line
from spikeprune.training.callbacks.budget import BudgetPruning
from spikeprune.training.callbacks.resume import ResumeState
from spikeprune.training.lightning_patches import ctrl_c
from spikeprune.training.modules.task import TaskModule


def train_teacher(context: RunContext, directory: RunDirectory) -> None:
    """Fine-tune the teacher, measure it, and stop the run if it is no better than a constant prediction."""
    teacher = distributed.from_rank_zero(lambda: networks.teacher(context))
    if teacher.note:
        print_once(teacher.note)
    module = modules.teacher_module(context, teacher)
    facts: dict[str, Any] = {"steps": 0, "seconds": 0.0}
    if context.stage("teacher").epochs:
        facts = fit(context, directory, "teacher", module)
    module = modules.teacher_module(context, module.teacher)
    measured = measure_teacher(context, module)
    distributed.from_rank_zero(lambda: check_teacher(context, measured))
    dev_predictions.write(context, directory, "teacher", module)
    distributed.from_rank_zero(lambda: save_teacher(context, directory, module.teacher, {**measured, **facts}))


def train_student(context: RunContext, directory: RunDirectory, name: str, parent: str) -> None:
    """One stage of the student: from the weights of the stage before it, calibrated if that is the teacher, to its own
    record."""
    frozen = distributed.from_rank_zero(lambda: load_teacher(context, directory))
    if parent == "teacher":
        batch = context.data.calibration_batches(context.config.student.calibration, context.config.seed)
        student = distributed.from_rank_zero(lambda: networks.student(context, frozen, batch))
    else:
        student = distributed.from_rank_zero(lambda: load_student(directory, parent, context.config))
    trained = compacted(student) if masks_are_final(context, name, student) else student
    module = modules.student_module(context, name, trained, frozen)
    facts = fit(context, directory, name, module)
    if trained is not student:
        scatter_into(trained, student.to(trained.classifier.weight))  # of the precision that it was trained in
        module = modules.student_module(context, name, student, frozen)
    pruning = facts.pop("budget", None)
    measured = measure_student(context, module, name)
    dev_predictions.write(context, directory, name, module)
    if silent := silent_layers(measured):
        print_once(f"{name}: no spike at all in {', '.join(silent)}, so nothing passes there; lower its lr or losses")
    if no_better_than_constant(context, measured):
        print_once(f"{name}: no better than a constant answer; compress less, or train this stage longer at a lower lr")
    if pruning:
        teacher = distributed.from_rank_zero(lambda: directory.record("teacher"))
        facts["budget"] = pruning.report(cost_in_unit(pruning.budget, measured, teacher))
        print_once(budget_line(facts["budget"]))
    distributed.from_rank_zero(lambda: save_student(context, directory, name, parent, student, {**measured, **facts}))


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
    done = distributed.from_rank_zero(
        lambda: {s: directory.record(s)["steps"] for s in context.active() if directory.finished(s)}
    )
    before = context.active()[: context.active().index(name)]
    trainer = trainers.trainer(context, name, directory, offset=sum(done[earlier] for earlier in before))
    checkpoint = directory.resume(name)
    resumed = distributed.from_rank_zero(checkpoint.is_file)
    step = distributed.from_rank_zero(lambda: resume_step(checkpoint, module)) if resumed else 0
    state = next(c for c in trainer.callbacks if isinstance(c, ResumeState))
    distributed.from_rank_zero(lambda: directory.rewind_metrics(done, name, step))
    if resumed:
        print_once(f"resumed from step {step}")
        context.tracker.stage_resumed(directory, name)
    try:
        with arithmetic.products(context.config), ctrl_c(trainer):
            trainer.fit(
                module,
                datamodule=modules.stage_data(context, name),
                ckpt_path=checkpoint if resumed else None,
                weights_only=True,
            )
        if resumed:
            state.restore(trainer)
    except Exception as error:  # what Lightning stumbles over in a checkpoint that is whole and another's
        if state.begun or not resumed or isinstance(error, InputError) or out_of_memory(error):
            raise
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise InputError(f"{checkpoint}: does not fit this stage ({reason.splitlines()[0][:200]}); {AGAIN}") from error
    distributed.require_equal(digest(module), f"the network that {name} left")
    budget = next((c for c in trainer.callbacks if isinstance(c, BudgetPruning)), None)
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
