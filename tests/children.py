"""Real processes without the seconds of an import each: they are forked from a server that has imported everything and
computed nothing. An `attempt` is one start of `spikeprune` in one of them; not a test."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from multiprocessing import forkserver
from pathlib import Path

import lightning as L
import pytest
from micro import GLUE

from spikeprune import cli
from spikeprune.experiment.build import trainers

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["children", "wandb"])


def process(target: Callable, args: Sequence) -> multiprocessing.Process:
    """Not started yet. Its server finds what it loads by its own path, and passes over in silence what it does not."""
    path = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(path))
        forkserver.ensure_running()
    return processes.Process(target=target, args=args)


def speak_into(log: Path) -> None:
    """What this process prints goes there, after what is in it."""
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def add_callback(stage: str, callback: L.Callback) -> None:
    """To the trainer of a stage of this process."""
    plain = trainers.stage_callbacks
    trainers.stage_callbacks = lambda context, name, run: [
        *([callback] if name == stage else []),
        *plain(context, name, run),
    ]


def _command(words, log: Path, folder: str, environment: dict[str, str], before: Callable | None, args) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests were started in the background
    speak_into(log)
    # as `python -m spikeprune`, which Lightning starts again for each further process
    sys.argv[1:], sys.modules["__main__"].__spec__ = words, find_spec("spikeprune.__main__")
    if before:
        before(*args)
    sys.exit(cli.main(words))


def begin(words: Sequence[str], log: Path, environment=None, before: Callable | None = None, args=()):
    """`spikeprune` with these words in a process of its own, in which `before` is called first. Its directory and
    environment are the caller's, not the server's."""
    given = {**os.environ, **(environment or {})}
    child = process(_command, (list(words), log, os.getcwd(), given, before, args))
    child.start()
    return child


def run_command(words: Sequence[str], log: Path, environment=None, before: Callable | None = None, args=()) -> int:
    """The same to its end; returns the exit code."""
    child = begin(words, log, environment, before, args)
    child.join(600)  # four of W&B's trials take a minute and a half, on a machine with much else to do six
    return child.exitcode


class Killer(L.Callback):
    """Sends its own process a signal, when the optimizer has made `step` steps."""

    def __init__(self, step: int, signal: signal.Signals):
        self.step, self.signal = step, signal

    def on_train_batch_end(self, trainer, *_) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.signal)


class ValidationKiller(Killer):
    """The same at the beginning of the validation behind that step."""

    def on_train_batch_end(self, trainer, *_) -> None:
        pass

    def on_validation_start(self, trainer, *_) -> None:
        super().on_train_batch_end(trainer)


def kill_in_validation(stage: str, step: int) -> None:
    add_callback(stage, ValidationKiller(step, signal.SIGKILL))


def _kill_at(stage: str, step: int, how: signal.Signals) -> None:
    add_callback(stage, Killer(step, how))


def attempt(overrides: list[str], log: Path, kill: tuple[str, int] | None = None, how=signal.SIGKILL) -> int:
    """One start of a run; `kill` names a stage and a step of it, `how` the signal that it then gets."""
    words = ["train", str(GLUE), *overrides]
    return run_command(words, log, None, _kill_at, (*kill, how)) if kill else run_command(words, log)
