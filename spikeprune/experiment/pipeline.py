"""A run from command to summary: its directory, its stages in order. What is finished is not done again."""

from __future__ import annotations

import zlib
from typing import Any

import lightning as L

from spikeprune.config.load import differences, read_resolved, to_yaml
from spikeprune.config.schema import Config
from spikeprune.cost.shapes import parameters
from spikeprune.errors import InputError
from spikeprune.experiment import processes
from spikeprune.experiment.build import arithmetic, networks
from spikeprune.experiment.build.networks import teacher_shape
from spikeprune.experiment.context import RunContext, prepare
from spikeprune.experiment.lock import RunLock
from spikeprune.experiment.reuse import shared_stages, take_over
from spikeprune.experiment.run_directory import RunDirectory, write_atomic, write_json
from spikeprune.experiment.stage import learn, teach
from spikeprune.experiment.summary import data_facts, summarize_run
from spikeprune.experiment.terminal import quiet, say
from spikeprune.integrations.wandb import live, online
from spikeprune.training import distributed, signals


def run(config: Config) -> dict[str, Any]:
    """Run every stage that is not finished yet, and return the summary that was written to `summary.json`.

    Raises InputError for bad input before anything is written, for a run directory made with another configuration or
    in use by another run, and for a teacher that is no better than the majority class. On several devices every process
    goes through this, rank 0 reads and writes, and returns.
    """
    quiet()
    with processes.started(config):
        return run_here(config)


def run_here(config: Config) -> dict[str, Any]:
    """`run` in one of its processes."""
    kernels = distributed.first(lambda: arithmetic.kernels(config))
    distributed.first(lambda: arithmetic.precision(config))
    graphs = distributed.first(lambda: arithmetic.cuda_graphs(config))
    mode = distributed.first(lambda: online.chosen_mode(config))
    parts = distributed.first(lambda: prepare(config))
    directory = RunDirectory(config.run.dir)
    shared, why = distributed.first(lambda: shared_stages(parts) if config.run.start_from else ([], ""))
    if (
        config.teacher.checkpoint
        and "teacher" not in shared
        and not distributed.first(lambda: directory.finished("teacher"))
    ):
        distributed.first(
            lambda: networks.teacher(parts).note
        )  # weights that cannot be used are refused before a write
    lock = RunLock(directory.path)
    stop_if_told()
    try:
        if distributed.first(lambda: begin(parts, directory, lock)):
            say(f"{directory.path}: is finished, nothing is run again")
            return distributed.first(directory.read_summary)
        with live.tracked(config, directory, mode, parts.active()):
            say(parts.raw.banner)
            say(f"kernels: {kernels}{', CUDA graphs' if graphs else ''}")
            return run_begun(parts, directory, kernels, shared, why)
    finally:
        lock.release()


def stop_if_told() -> None:
    """Raises Stopped, in every process, where the first has received a signal."""
    if signal := distributed.first(signals.received):
        raise signals.Stopped(signal)


def begin(parts: RunContext, directory: RunDirectory, lock: RunLock) -> bool:
    """Take the run directory for this run, made if there is none; the lock comes before anything else is written.
    Returns whether nothing is left to do."""
    if not directory.config.is_file():
        directory.create(need=bytes_needed(parts))
    if lock.take():
        say(lock.takeover)
    enter(directory, parts)
    return directory.complete(parts.active())


def enter(directory: RunDirectory, parts: RunContext) -> None:
    """Begin a run in the directory, or make sure that it is this run's: same configuration, same data."""
    if directory.config.is_file():
        changed = differences(read_resolved(directory.config), parts.config)
        if changed:
            raise InputError(
                f"run.dir: {directory.path} was started with another configuration; use another run.dir or the old "
                "values:\n" + "\n".join(f"  {line}" for line in changed)
            )
        made_from = directory.data_facts()
        if made_from["fingerprint"] != parts.raw.fingerprint:
            raise InputError(
                f"run.dir: {directory.path} was started on other data ({made_from['origin']}, fingerprint "
                f"{made_from['fingerprint']}, now {parts.raw.fingerprint}); use another run.dir"
            )
        return
    write_json(directory.path / "data.json", data_facts(parts))
    write_atomic(directory.config, to_yaml(parts.config))


def bytes_needed(parts: RunContext) -> int:
    """Upper bound of what a run writes: weights of each stage, and a resume checkpoint with Adam's two moments twice,
    since its predecessor goes only when it is whole."""
    weights = 4 * parameters(shape=teacher_shape(parts)).total
    return weights * (len(parts.active()) + 2 * 3) + 5_000_000


def run_begun(parts: RunContext, directory: RunDirectory, kernels: str, shared: list[str], why: str) -> dict[str, Any]:
    """Say what is run, take over the stages that are shared, and run the rest."""
    config = parts.config
    if shared and (taken := distributed.first(lambda: take_over(parts, directory, shared))):
        say(f"taken over from {config.run.start_from}: {', '.join(taken)}{f' (then {why})' if why else ''}")
    return run_stages(parts, directory, kernels)


def run_stages(parts: RunContext, directory: RunDirectory, kernels: str) -> dict[str, Any]:
    """Every stage that is not finished, then `summary.json`. Raises Stopped where a signal asks for it."""
    stages = parts.active()
    for number, name in enumerate(stages, 1):
        if distributed.first(lambda name=name: directory.finished(name)):
            say(f"[{number}/{len(stages)}] {name}: finished earlier")
            continue
        stop_if_told()
        say(f"[{number}/{len(stages)}] {name}: {parts.stage(name).epochs} epochs")
        L.seed_everything(stage_seed(parts.config.seed, name), verbose=False)
        if name == "teacher":
            teach(parts, directory)
        else:
            learn(parts, directory, name, before(stages, name))
        live.stage_done(directory, name, stages)
    return distributed.first(lambda: finish(parts, directory, {"kernels": kernels}))


def stage_seed(seed: int, stage: str) -> int:
    """Each stage draws anew, from 32 bits: numpy takes no more."""
    return (seed + zlib.crc32(stage.encode()) % 10_000) % 2**32


def before(stages: list[str], name: str) -> str | None:
    """The student stage that `name` goes on from; None for the first."""
    students = [s for s in stages if s != "teacher"]
    index = students.index(name)
    return students[index - 1] if index else None


def finish(parts: RunContext, directory: RunDirectory, facts: dict[str, Any]) -> dict[str, Any]:
    """Write `summary.json` and `metrics.csv`."""
    summary = {**summarize_run(parts, directory), **facts}
    write_json(directory.summary, summary)
    directory.write_csv()
    live.finished(parts.config, directory, summary)
    return summary
