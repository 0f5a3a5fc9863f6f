"""What stands before the first stage: checks that write nothing, then the run directory, created or found again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec

from spikeprune.config.load import differences, read_resolved, to_yaml
from spikeprune.config.schema import Config
from spikeprune.errors import InputError
from spikeprune.experiment.build import arithmetic, networks
from spikeprune.experiment.context import RunContext, prepare
from spikeprune.experiment.estimate import bytes_needed
from spikeprune.experiment.lock import RunLock
from spikeprune.experiment.reuse import shared_stages, take_over
from spikeprune.experiment.run_directory import RunDirectory
from spikeprune.experiment.summary import data_facts
from spikeprune.experiment.terminal import print_once
from spikeprune.experiment.tracking import Tracker
from spikeprune.files.atomic import remove_parts
from spikeprune.training import distributed


@dataclass(frozen=True)
class Backends:
    """How this run computes: which kernels, and whether steps are replayed as CUDA graphs."""

    kernels: str
    cuda_graphs: bool

    def __str__(self) -> str:
        return f"kernels: {self.kernels}{', CUDA graphs' if self.cuda_graphs else ''}"


@dataclass(frozen=True)
class Reuse:
    """Finished stages of another run (`run.start_from`) that this run shares, and why the next one is not shared."""

    stages: list[str]
    reason: str = ""


def check_backends(config: Config) -> Backends:
    """Raises InputError for kernels, a precision, CUDA graphs or TensorBoard that this machine does not have."""
    if config.run.tensorboard and not any(map(find_spec, ("tensorboard", "tensorboardX"))):
        raise InputError("run.tensorboard = true: TensorBoard is missing; `pip install tensorboard`, or leave it out")
    kernels = distributed.first(lambda: arithmetic.kernels(config))
    distributed.first(lambda: arithmetic.precision(config))
    return Backends(kernels, bool(distributed.first(lambda: arithmetic.cuda_graphs(config))))


def read_context(config: Config, tracker: Tracker) -> RunContext:
    """Data, tokenizer and architecture, read by rank 0 and sent to the others. Raises InputError."""
    return replace(distributed.first(lambda: prepare(config)), tracker=tracker)


def find_reuse(context: RunContext) -> Reuse:
    """Raises InputError for a `run.start_from` that shares no stage with this run."""
    if not context.config.run.start_from:
        return Reuse([])
    return Reuse(*distributed.first(lambda: shared_stages(context)))


def check_teacher_weights(context: RunContext, directory: RunDirectory, reuse: Reuse) -> None:
    """Raises InputError for a teacher's checkpoint that cannot be loaded, where its stage is still to run."""
    if not context.config.teacher.checkpoint or "teacher" in reuse.stages:
        return
    if not distributed.first(lambda: directory.finished("teacher")):
        distributed.first(lambda: networks.teacher(context).note)


@contextmanager
def opened(context: RunContext, directory: RunDirectory) -> Iterator[bool]:
    """The run directory, created if it does not exist, and locked; yields whether the run is already complete.

    The lock is taken before anything else is written. Raises InputError for a directory in use, or made with another
    configuration or other data.
    """
    lock = RunLock(directory.path)
    try:
        yield distributed.first(lambda: _open(context, directory, lock))
    finally:
        lock.release()


def _open(context: RunContext, directory: RunDirectory, lock: RunLock) -> bool:
    if not directory.config.is_file():
        directory.create(need=bytes_needed(context))
    if lock.take():
        print_once(lock.takeover)
        remove_parts(directory.path)
    enter(directory, context)
    return directory.complete(context.active())


def enter(directory: RunDirectory, context: RunContext) -> None:
    """Write the configuration and the facts of the data, or compare with those that are there. Raises InputError where
    they differ."""
    if not directory.config.is_file():
        directory.begin(to_yaml(context.config), data_facts(context))
        return
    if changed := differences(read_resolved(directory.config), context.config):
        raise InputError(
            f"run.dir: {directory.path} was started with another configuration; use another run.dir or the old "
            "values:\n" + "\n".join(f"  {line}" for line in changed)
        )
    started_on = directory.data_facts()
    if started_on["fingerprint"] != context.raw.fingerprint:
        raise InputError(
            f"run.dir: {directory.path} was started on other data ({started_on['origin']}, fingerprint "
            f"{started_on['fingerprint']}, now {context.raw.fingerprint}); use another run.dir"
        )


def copy_stages(context: RunContext, directory: RunDirectory, reuse: Reuse) -> None:
    """Copy the shared stages that this directory does not have yet."""
    if reuse.stages and (taken := distributed.first(lambda: take_over(context, directory, reuse.stages))):
        reason = f" (then {reuse.reason})" if reuse.reason else ""
        print_once(f"taken over from {context.config.run.start_from}: {', '.join(taken)}{reason}")
