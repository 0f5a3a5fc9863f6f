"""A signal of the cluster: a checkpoint, no further step, the right exit code, and the next attempt ends as if
nothing had happened."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
from children import add_callback, run_command
from micro import BATCHES, GLUE, STAGES, logged, micro, only
from test_resume import result, steps_of

from spikeprune import cli
from spikeprune.experiment.build import trainers
from spikeprune.experiment.resume_checkpoint import read_checkpoint
from spikeprune.experiment.run_directory import RunDirectory
from spikeprune.training import signals
from spikeprune.training.lightning_patches import ctrl_c

USR1, TERM = signal.SIGUSR1, signal.SIGTERM


class Sender(L.Callback):
    """Sends its own process a signal at the `count`th call of a hook."""

    def __init__(self, hook: str, count: int, number: signal.Signals):
        self.left, self.number = count, number
        setattr(self, hook, self.call)

    def call(self, *_) -> None:
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), self.number)


def send(stage: str, *how) -> None:
    """From now on in this process: in a stage or when one is measured."""
    if stage != "measure":
        add_callback(stage, Sender(*how))
        return
    plain, sender = trainers.evaluator, Sender(*how)
    trainers.evaluator = lambda config, callbacks=(): plain(config, [sender, *callbacks])


def start(overrides: list[str], log: Path, *sent) -> int:
    """One start of the run; `sent`: a stage, a hook, at which call of it, and the signal."""
    return run_command(["train", str(GLUE), *overrides], log, None, send if sent else None, sent)


def small(folder: Path, glue: Path) -> list[str]:
    return [*micro(folder, glue), "data.eval_batch_size=8", "run.validate_every=2"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, glue) -> RunDirectory:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert start(small(folder / "run", glue), folder / "log") == 0, (folder / "log").read_text()
    return RunDirectory(folder / "run")


CHAIN = [
    ("teacher", "on_train_batch_end", BATCHES + 3, TERM, 143, BATCHES + 3),
    ("internal_kd", "on_train_batch_end", 1, USR1, 75, 1),
    ("internal_kd", "on_validation_batch_start", 2, USR1, 75, 2 * BATCHES),
    ("spatial", "on_train_batch_end", BATCHES, USR1, 75, BATCHES + 1),  # no validation after that epoch
    ("spatial", "on_validation_batch_start", 1, TERM, 143, 2 * BATCHES),
    ("spatial", "on_train_epoch_start", 1, TERM, 143, 2 * BATCHES + 1),
    ("measure", "on_validation_batch_start", 2, USR1, 75, 3 * BATCHES),
]


def test_signalled_again_and_again_equals_undisturbed(undisturbed, glue, tmp_path) -> None:
    run, log, arguments = RunDirectory(tmp_path / "run"), tmp_path / "log", small(tmp_path / "run", glue)
    for stage, hook, count, number, code, step in CHAIN:
        log.write_text("")
        assert start(arguments, log, stage, hook, count, number) == code, log.read_text()
        assert f"stopped by {number.name}: the same command resumes" in log.read_text()
        assert "Traceback" not in log.read_text() and not list(run.path.glob("lock.*"))
        unfinished = next(name for name in STAGES if not run.finished(name))
        assert stage in (unfinished, "measure")
        assert read_checkpoint(run.resume(unfinished), "")["global_step"] == step
    assert start(arguments, log) == 0, log.read_text()
    found, wanted = result(run), result(undisturbed)
    for name in STAGES:
        assert found["weights"][name] == wanted["weights"][name], f"{name} has other weights"
    assert found == wanted
    assert steps_of(run) == steps_of(undisturbed)
    assert logged(run) == logged(undisturbed)


@pytest.mark.parametrize(("interrupted", "raised"), [(True, KeyboardInterrupt), (False, SystemExit)])
def test_what_is_no_ctrl_c_keeps_its_exit_code(interrupted, raised) -> None:
    with pytest.raises(raised) as found, ctrl_c(SimpleNamespace(interrupted=interrupted)):
        sys.exit(3)
    assert interrupted or found.value.code == 3


def test_ctrl_c_while_a_stage_is_measured(glue, tmp_path) -> None:
    words, log = [*micro(tmp_path / "run", glue), *only()], tmp_path / "log"
    assert start(words, log, "measure", "on_validation_batch_start", 1, signal.SIGINT) == 130, log.read_text()
    assert log.read_text().endswith("interrupted; the same command resumes where this one stopped\n")


def caught_by(pid: int, number: int) -> bool:
    """Whether the process has a handler of its own for the signal."""
    mask = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())[1]
    return bool(int(mask, 16) >> (number - 1) & 1)


def test_a_signal_before_anything_is_read_stops_too(tmp_path) -> None:
    """While libraries are being imported, which takes seconds and by Python's own rules would end in a kill."""
    command = [sys.executable, "-m", "spikeprune", "train", str(GLUE), *micro(tmp_path / "run"), "task=sst2"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        while not caught_by(child.pid, TERM):
            time.sleep(0.005)
        child.send_signal(TERM)
        out, error = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == signals.CODES[TERM], error
    assert error == "stopped by SIGTERM: the same command resumes where this one stopped\n"
    assert out == "" and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("numbers", "follows"),
    [
        ({}, False),
        ({"SLURM_PROCID": "0", "LOCAL_RANK": "1"}, True),  # Lightning's launcher in a shell of srun's
        ({"SLURM_PROCID": "2"}, True),
        ({"RANK": "2", "LOCAL_RANK": "0"}, True),  # torchrun, on the second node
        ({"NODE_RANK": "1"}, True),  # the same command on each node
        ({"SLURM_PROCID": "0", "RANK": "0", "NODE_RANK": "0", "LOCAL_RANK": "0"}, False),
    ],
)
def test_only_the_first_of_several_processes_handles_a_signal(numbers, follows, monkeypatch, capsys) -> None:
    for name in ("SLURM_PROCID", "RANK", "NODE_RANK", "LOCAL_RANK", "SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in numbers.items():
        monkeypatch.setenv(name, value)

    def stopped(args) -> None:
        raise signals.Stopped(signal.SIGTERM)

    monkeypatch.setitem(cli.ACTIONS, "train", stopped)
    assert cli.main(["train", str(GLUE)]) == (0 if follows else 143)
    assert ("stopped by SIGTERM" in capsys.readouterr().err) is not follows


def test_outside_a_run_the_signals_keep_their_meaning(tmp_path) -> None:
    before = [signal.getsignal(number) for number in signals.CODES]
    assert cli.main(["train", str(tmp_path / "no.yaml")]) == 2
    assert [signal.getsignal(number) for number in signals.CODES] == before
    signals.install_handlers()
    assert [signal.getsignal(number) for number in signals.CODES] == before


def test_a_signal_waits_until_it_is_polled() -> None:
    with signals.caught():
        os.kill(os.getpid(), TERM)
        os.kill(os.getpid(), USR1)  # the first one counts
        assert signals.received() == TERM
        with pytest.raises(signals.Stopped) as stop:
            signals.check()
    assert (stop.value.signal, stop.value.code) == (TERM, 143)
    with signals.caught():
        signals.check()
