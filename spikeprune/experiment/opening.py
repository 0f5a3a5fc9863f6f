"""What stands before the first stage: checks that write nothing, then the run directory, created or found again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec

from spikeprune import distributed
from spikeprune.config.load import differences, read_resolved, to_yaml
from spikeprune.config.schema import Config
from spikeprune.errors import InputError
from spikeprune.experiment.build import arithmetic, networks
from spikeprune.experiment.context import RunContext
from spikeprune.experiment.estimate import bytes_needed
from spikeprune.experiment.lock import RunLock
from spikeprune.experiment.reuse import take_over
from spikeprune.experiment.run_directory import RunDirectory
from spikeprune.experiment.summary import data_facts
from spikeprune.experiment.terminal import print_once
from spikeprune.files.atomic import remove_parts


def check_backends(config: Config) -> str:
    """The kernels that the run computes with. Raises InputError for kernels, a precision or TensorBoard that this
    machine does not have."""
    if config.run.tensorboard and not any(map(find_spec, ("tensorboard", "tensorboardX"))):
        raise InputError("run.tensorboard = true: TensorBoard is missing; `pip install tensorboard`, or leave it out")
    distributed.from_rank_zero(lambda: arithmetic.precision(config))
    return distributed.from_rank_zero(lambda: arithmetic.kernels(config))


def check_teacher_weights(context: RunContext, directory: RunDirectory, shared: Sequence[str]) -> None:
    """Raises InputError for a teacher's checkpoint that cannot be loaded, where its stage is still to run and is not
    among those that another run shares."""
    if context.config.teacher.checkpoint and "teacher" not in shared:
        distributed.from_rank_zero(lambda: directory.finished("teacher") or networks.teacher(context).note)


@contextmanager
def opened(context: RunContext, directory: RunDirectory) -> Iterator[bool]:
    """The run directory, created if it does not exist, and locked; yields whether the run is already complete.

    The lock is taken before anything else is written. Raises InputError for a directory in use, or made with another
    configuration or other data.
    """
    with ExitStack() as held:
        yield distributed.from_rank_zero(lambda: _open(context, directory, held))


def _open(context: RunContext, directory: RunDirectory, held: ExitStack) -> bool:
    if not directory.config.is_file():
        directory.create(need=bytes_needed(context))
    lock = held.enter_context(RunLock(directory.path))
    if lock.takeover:
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
            f"run.dir: {directory.path} was started with another configuration; use the old values, or another run.dir "
            f"(there run.start_from={directory.path} reuses finished stages whose settings are equal):\n"
            + "\n".join(f"  {key}: {change}" for key, change in changed.items())
        )
    started_on = directory.data_facts()
    if started_on["fingerprint"] != context.raw.fingerprint:
        raise InputError(
            f"run.dir: {directory.path} was started on other data ({started_on['origin']}, fingerprint "
            f"{started_on['fingerprint']}, now {context.raw.fingerprint}); use another run.dir"
        )


def copy_stages(context: RunContext, directory: RunDirectory, shared: Sequence[str], why: str) -> None:
    """Copy the shared stages that this directory does not have yet. `why`: the next one is not shared."""
    if shared and (taken := distributed.from_rank_zero(lambda: take_over(context, directory, shared))):
        reason = f" (then {why})" if why else ""
        print_once(f"taken over from {context.config.run.start_from}: {', '.join(taken)}{reason}")
