"""One run at a time in a directory: a second is refused and told of the first, a dead one's lock is taken over."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from micro import GLUE, micro

from spikeprune import cli
from spikeprune.errors import InputError
from spikeprune.experiment.lock import Holder, RunLock

HOLD = """
import sys, time
from pathlib import Path
from spikeprune.experiment.lock import RunLock
with RunLock(Path(sys.argv[1])) as lock:
    print(lock.path.name, flush=True)
    time.sleep(60)
"""


def hold(folder: Path, **environment: str) -> subprocess.Popen:
    """A process that holds the lock."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})
    assert child.stdout.readline() == "lock.1\n"
    return child


def locks(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if "lock" in path.name)


def leave(folder: Path, holder: Holder, number: int = 1) -> None:
    (folder / f"lock.{number}").write_text(json.dumps(asdict(holder)))


def test_the_second_is_refused_and_a_killed_one_is_followed(tmp_path) -> None:
    child = hold(tmp_path, SLURM_JOB_ID="4711", SLURM_RESTART_COUNT="2")
    try:
        words = rf"in use by another run \(host {socket.gethostname()}, pid {child.pid}, SLURM job 4711\)"
        for attempt in (lambda: RunLock(tmp_path).__enter__(), lambda: RunLock(tmp_path).check()):
            with pytest.raises(InputError, match=words):
                attempt()
        assert locks(tmp_path) == ["lock.1"]
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    RunLock(tmp_path).check()
    with RunLock(tmp_path) as lock:
        assert f"from a run that is dead (host {socket.gethostname()}, pid {child.pid}" in lock.takeover
        assert locks(tmp_path) == ["lock.2"]
        with pytest.raises(InputError, match=f"pid {os.getpid()}"):
            RunLock(tmp_path).__enter__()
    assert locks(tmp_path) == []
    with RunLock(tmp_path) as lock:
        assert lock.takeover == "" and locks(tmp_path) == ["lock.1"]


def test_an_error_inside_gives_the_lock_back(tmp_path) -> None:
    with pytest.raises(KeyError), RunLock(tmp_path):
        raise KeyError
    assert locks(tmp_path) == []


def test_a_lock_that_was_not_got_is_not_given_back(tmp_path) -> None:
    with RunLock(tmp_path):
        second = RunLock(tmp_path)
        with pytest.raises(InputError):
            second.__enter__()
        assert locks(tmp_path) == ["lock.1"]


def test_who_is_alive() -> None:
    me = Holder.me()
    assert me.alive() is True
    assert replace(me, started="1").alive() is False  # another process has the number now
    assert replace(me, boot="x").alive() is False  # the machine was started anew
    assert replace(me, pid=2**22 + 1).alive() is False
    assert replace(me, host="elsewhere", job=None).alive() is None


def test_a_zombie_is_dead() -> None:
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert replace(Holder.me(), pid=child.pid, started="1").alive() is False
    from spikeprune.experiment.lock import _started

    assert _started(child.pid) == "" and _started(os.getpid()) != ""
    child.wait()


def test_an_earlier_attempt_of_the_same_job_is_dead_on_any_machine(monkeypatch) -> None:
    former = replace(Holder.me(), host="elsewhere", job="12", restarts=0)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert former.alive() is False
    assert (Holder.me().job, Holder.me().restarts) == ("12", 1)
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")  # the last task of an array has the array's number
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert Holder.me().job == "12_3"


def test_an_unreachable_machine_is_not_taken_for_dead(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no squeue
    for job in (None, "12"):
        leave(tmp_path, replace(Holder.me(), host="elsewhere", job=job))
        with pytest.raises(InputError, match=r"on another machine \(host elsewhere.*remove .*lock.1"):
            RunLock(tmp_path).__enter__()


def test_what_is_no_lock_is_named(tmp_path) -> None:
    (tmp_path / "lock.1").write_text("{}")
    with pytest.raises(InputError, match=r"lock.1: is no lock of a run; remove it"):
        RunLock(tmp_path).__enter__()


def contend(folder: str, count: int, results: multiprocessing.Queue) -> None:
    """Take and give back the lock; a counter that only the holder changes shows whether anybody else came in."""
    path, taken = Path(folder) / "counter", 0
    while taken < count:
        try:
            with RunLock(Path(folder)):
                number = int(path.read_text())
                path.write_text(str(number + 1))
                taken += 1
        except InputError:
            pass
    results.put(taken)


def test_many_that_find_the_same_dead_holder_do_not_meet(tmp_path) -> None:
    context = multiprocessing.get_context("fork")
    dead = replace(Holder.me(), started="1")
    for number in (3, 4):  # a run died while it was taking over
        leave(tmp_path, dead, number)
    (tmp_path / "counter").write_text("0")
    results = context.Queue()
    children = [context.Process(target=contend, args=(str(tmp_path), 25, results)) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    assert (tmp_path / "counter").read_text() == "100"
    assert locks(tmp_path) == []


def test_train_prints_it(tmp_path, capsys) -> None:
    """Through the command line: refused in one sentence; and after a kill the takeover is told."""
    run = tmp_path / "run"
    run.mkdir()
    small = ["data.embedded=[16,20]", "stages.teacher.lr=1.0e-9", "stages.teacher.epochs=1"]
    command = ["train", str(GLUE), *micro(run), "task=sst2", *small]
    with RunLock(run):
        assert cli.main(command) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith(f"error: run.dir: {run} is in use by another run (host ")
    assert list(run.iterdir()) == [run / "stages"]
    leave(run, replace(Holder.me(), started="1"))
    assert cli.main(command) == 2  # its teacher learns nothing
    captured = capsys.readouterr()
    assert captured.out.startswith("took the run directory over from a run that is dead (host ")
    assert "no better than" in captured.err and locks(run) == []


def test_a_signal_outside_the_queue_prints_why_it_is_not_requeued(tmp_path, monkeypatch, capsys) -> None:
    """In a job, but without SLURM's commands: the exit code asks for another start, and the reason is there."""
    from spikeprune.training import signals

    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("PATH", str(tmp_path))

    def stopped(args) -> None:
        raise signals.Stopped(signal.SIGUSR1)

    monkeypatch.setitem(cli.ACTIONS, "train", stopped)
    assert cli.main(["train", str(GLUE)]) == 75
    message = capsys.readouterr().err
    assert message.startswith("stopped by SIGUSR1: the same command resumes")
    assert "job 12 is not requeued: scontrol is not on PATH" in message
