"""A run from configuration to summary: checks, the run directory, the stages in order, `summary.json`."""

from __future__ import annotations

import zlib
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import lightning as L

from spikeprune import distributed
from spikeprune.config.schema import Config
from spikeprune.data.description import describe
from spikeprune.experiment import estimate, opening, processes
from spikeprune.experiment.build import arithmetic
from spikeprune.experiment.context import RunContext, prepare
from spikeprune.experiment.report import PAGE, write_own
from spikeprune.experiment.reuse import shared_stages
from spikeprune.experiment.run_directory import AGAIN, RunDirectory
from spikeprune.experiment.stage import train_student, train_teacher
from spikeprune.experiment.streams import recorded
from spikeprune.experiment.summary import summarize_run
from spikeprune.experiment.terminal import print_once, quiet
from spikeprune.experiment.tracking import Tracker
from spikeprune.files import jsonfile
from spikeprune.files.atomic import write_sealed
from spikeprune.report.tables import summary_table
from spikeprune.training import signals

RANDOM_TEACHER = (
    "teacher: random weights, which learn little from real text: enough to try the stages; for a classifier give a "
    "pretrained one, by teacher.checkpoint or preset=minilm"
)


def run(config: Config, tracker: Tracker | None = None) -> dict[str, Any]:
    """Run every stage that is not finished yet, print the closing table, and return the summary that was written to
    `summary.json`.

    Raises InputError for bad input before anything is written, for a run directory made with another configuration or
    in use by another run, and for a teacher that is no better than the majority class; Stopped after a signal. On
    several devices every process calls this; rank 0 reads, writes and returns.
    """
    quiet()
    with processes.started(config), arithmetic.repeatable(config):
        return run_process(config, tracker or Tracker())


def run_process(config: Config, tracker: Tracker) -> dict[str, Any]:
    """`run` in one of its processes."""
    kernels = opening.check_backends(config)
    tracker.check(config)
    context = replace(distributed.from_rank_zero(lambda: prepare(config)), tracker=tracker)
    directory = RunDirectory(config.run.dir)
    shared, why = distributed.from_rank_zero(lambda: shared_stages(context))
    opening.check_teacher_weights(context, directory, shared)
    stop_on_signal()
    with opening.opened(context, directory) as complete:
        if complete:
            print_once(f"{directory.path}: finished, nothing to run")
            summary = distributed.from_rank_zero(directory.read_summary)
            with jsonfile.as_written(directory.summary, AGAIN):
                distributed.from_rank_zero(lambda: add_page(directory, context))
                print_once(f"\n{summary_table(summary)}\n\nreport: {directory.path / PAGE}")
            return summary
        log = nullcontext() if distributed.rank() else recorded(directory.log)
        with log, tracker.opened(context.config, directory, context.active()):
            unread = context.config.teacher.checkpoint is None and context.raw.source != "embedded"
            told = filter(None, (context.logits_alone, context.left_out, RANDOM_TEACHER * unread))
            backends = f"kernels: {kernels}{', CUDA graphs' if arithmetic.replays(context) else ''}"
            for line in (context.raw.banner, *describe(context.raw, context.data.encoded), *told, backends):
                print_once(line)
            print_once(estimate.before(context))
            opening.copy_stages(context, directory, shared, why)
            run_stages(context, directory)
            summary = distributed.from_rank_zero(lambda: finish(context, directory, kernels))
            path = distributed.from_rank_zero(lambda: write_own(directory, context))
            print_once(f"\n{summary_table(summary)}\n\nreport: {path}")
            return summary


def run_stages(context: RunContext, directory: RunDirectory) -> None:
    """Train, measure and record every stage that has no record yet."""
    stages = context.active()
    for number, name in enumerate(stages, 1):
        if distributed.from_rank_zero(lambda name=name: directory.kept(name)):
            print_once(f"[{number}/{len(stages)}] {name}: finished earlier")
            continue
        stop_on_signal()
        print_once(f"[{number}/{len(stages)}] {name}: {context.stage(name).epochs} epochs")
        L.seed_everything(stage_seed(context.config.seed, name), verbose=False)
        if name == "teacher":
            train_teacher(context, directory)
        else:
            train_student(context, directory, name, parent=stages[number - 2])
        context.tracker.stage_done(directory, name, stages)


def finish(context: RunContext, directory: RunDirectory, kernels: str) -> dict[str, Any]:
    """Write `metrics.csv` and, with which a run is complete, `summary.json`."""
    summary = {**summarize_run(context, directory), "kernels": kernels}
    directory.write_csv()
    write_sealed(directory.summary, summary)
    context.tracker.finished(summary)
    return summary


def add_page(directory: RunDirectory, context: RunContext) -> None:
    """Write the page of a complete run where a kill came between its summary and its page."""
    if not (directory.path / PAGE).is_file():
        write_own(directory, context)


def stage_seed(seed: int, stage: str) -> int:
    """A seed of 32 bits (numpy's limit) that differs from stage to stage."""
    return (seed + zlib.crc32(stage.encode()) % 10_000) % 2**32


def stop_on_signal() -> None:
    """Raises Stopped, in every process, where rank 0 has received a signal."""
    if signal := distributed.from_rank_zero(signals.received):
        raise signals.Stopped(signal)
