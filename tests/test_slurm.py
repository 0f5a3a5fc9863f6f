"""Jobs on a real SLURM, of one node in a directory of this test: what SLURM says of them, and what they leave.

Everything that needs no other job to end is submitted at once, and the tests then wait for what they look at.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from children import attempt
from cluster import Cluster
from micro import GLUE, ROOT, logged, micro, only
from test_resume import result, steps_of
from tracked import check_history, online
from wandb_server import Board, wandb_server

from spikeprune import cli
from spikeprune.experiment import slurm_job
from spikeprune.experiment.lock import Holder
from spikeprune.experiment.resume_checkpoint import read_checkpoint
from spikeprune.experiment.run_directory import RunDirectory

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

EPOCHS = 16  # of the stages that are interrupted: about a second
INTERRUPTED = ("internal_kd", "spatial", "quantize")
LONG = (*(f"stages.{stage}.epochs={EPOCHS}" for stage in INTERRUPTED[:2]), "run.validate_every=10")
SHORT = ("stages.teacher.epochs=5", "stages.prediction_kd.epochs=1", "stages.temporal.epochs=1")
QUANTIZED = (f"stages.quantize.epochs={EPOCHS}", "stages.quantize.weights=ternary")
NOTHING = ("stages.spatial.heads=1", "stages.spatial.ffn=1", "stages.temporal.t_steps=null")
TWO_STAGES = (*LONG, *SHORT, *NOTHING, *only("teacher", "internal_kd"))
ALL = ("teacher", "internal_kd", "prediction_kd", "spatial", "temporal", "quantize", "finetune")
REQUEST = ("--gpus=0", "--cpus=1", "--time=20:00")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    made = Cluster(tmp_path_factory.mktemp("cluster") / "slurm")
    before, here = dict(os.environ), os.getcwd()
    os.environ.update(made.environment)
    os.environ["PYTHONPATH"] = str(ROOT)
    os.chdir(ROOT)
    made.start()
    yield made
    made.stop_jobs()
    made.stop()
    os.chdir(here)
    os.environ.clear()
    os.environ.update(before)


def launch(capsys_text: Callable[[], str], *arguments: str) -> tuple[str, Path]:
    """`spikeprune launch`: the job's number and its log, as printed."""
    assert cli.main(["launch", str(GLUE), *arguments]) == 0
    text = capsys_text()
    return re.search(r"^job (\d+):", text, re.M)[1], Path(re.search(r"^logs?: (.*)$", text, re.M)[1])


def wait_for(what: Callable[[], object], seconds: float = 240) -> object:
    until = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.02)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs of a user")  # a path with spaces


@pytest.fixture(scope="module")
def board() -> Iterator[Board]:
    with wandb_server() as board:
        yield board


@pytest.fixture(scope="module")
def jobs(cluster, folder, glue, board) -> dict[str, tuple[str, Path]]:
    """name -> job and log. W&B follows `interrupted`. `array` has the runs sst2 and cola with two seeds each, of two
    stages. `endless` would train for an hour."""

    def one(name: str, *arguments: str) -> tuple[str, Path]:
        text = io.StringIO()
        with contextlib.redirect_stdout(text):
            overrides = micro(folder / name, glue)[0 if "{task}" not in name else 1 :]  # the task stands first
            return launch(text.getvalue, *overrides, *arguments, *REQUEST)

    endless = one("endless", "stages.internal_kd.epochs=100000")
    with pytest.MonkeyPatch.context() as patch:  # of the job, to which sbatch hands it on
        for name, value in {**online(board), "WANDB_MODE": "online", "WANDB_SILENT": "true"}.items():
            patch.setenv(name, value)
        interrupted = one("interrupted", *LONG, *SHORT, *QUANTIZED, "run.wandb=auto")
    fails = one("fails", "stages.teacher.lr=1.0e-9")
    array = one("${task}-${seed}", *TWO_STAGES, "--array=sst2 cola", "--seeds=0-1")
    return {"endless": endless, "interrupted": interrupted, "fails": fails, "array": array}


def interrupt(cluster: Cluster, job: str, run: RunDirectory, stage: str) -> int:
    """Send SIGUSR1 in the middle of a stage; returns the step from which the next attempt resumes."""
    wait_for(lambda: any(r["stage"] == stage and r["step"] >= 20 for r in run.read_metrics()))
    cluster.signal(job, "USR1")
    restarts = int(cluster.show(job)["Restarts"])
    wait_for(lambda: run.resume(stage).is_file() and not list(run.path.glob("lock.*")), 30)
    step = read_checkpoint(run.resume(stage), "")["global_step"]
    wait_for(lambda: int(cluster.show(job)["Restarts"]) > restarts or cluster.show(job)["JobState"] == "PENDING", 30)
    assert not run.finished(stage)
    return step


@pytest.fixture(scope="module")
def twin(jobs, folder, glue) -> RunDirectory:
    """What `interrupted` would have been, in a process beside the jobs."""
    run = RunDirectory(folder / "twin")
    code = attempt([*micro(run.path, glue), *LONG, *SHORT, *QUANTIZED], folder / "twin.log")
    assert code == 0, (folder / "twin.log").read_text()
    return run


@pytest.fixture(scope="module")
def interruptions(cluster, jobs, folder):
    """The interruptions, on their way from the beginning: job -> the steps that its next attempts resume from."""
    stages = {"interrupted": INTERRUPTED, "cola-1": ("internal_kd",)}
    numbers = {"interrupted": jobs["interrupted"][0], "cola-1": f"{jobs['array'][0]}_3"}

    def all_of(name: str) -> list[int]:
        return [interrupt(cluster, numbers[name], RunDirectory(folder / name), stage) for stage in stages[name]]

    with ThreadPoolExecutor(2) as threads:
        yield {name: threads.submit(all_of, name) for name in stages}


def test_a_second_job_in_the_directory_is_told_of_the_first(cluster, jobs, interruptions, folder, capsys) -> None:
    (job, _), run = jobs["endless"], RunDirectory(folder / "endless")
    wait_for(lambda: run.metrics.is_file())
    again = cluster.wait(cluster.sbatch(run.path / "job.sh"))
    assert (again["JobState"], again["ExitCode"]) == ("FAILED", "2:0")
    text = (run.path / f"slurm-{again['JobId']}.log").read_text()
    assert f"is in use by another run (host {os.uname().nodename}, pid " in text and f"SLURM job {job})" in text
    assert "Traceback" not in text
    script = (run.path / "job.sh").read_text().split("spikeprune train ")[1].split(" task=")[0]
    arguments = [word for word in shlex.split(script)[1:] if not word.startswith("run.accelerator")]
    before = cluster.queue()
    capsys.readouterr()
    assert cli.main(["launch", str(GLUE), *arguments, "run.accelerator=cpu", "task=sst2", *REQUEST]) == 2
    assert f"SLURM job {job})" in capsys.readouterr().err and cluster.queue() == before


def test_slurm_knows_whether_a_job_lives(cluster, jobs) -> None:
    job = jobs["endless"][0]
    assert slurm_job.alive(job, 0) is True
    assert slurm_job.alive(job, 1) is False and slurm_job.alive("99999", 0) is False
    elsewhere = Holder("another-host", "", 1, "1", job, 0, "")
    assert elsewhere.alive() is True and replace(elsewhere, job="99999").alive() is False
    assert replace(elsewhere, job=None).alive() is None


def test_a_cancelled_job_leaves_a_checkpoint_and_no_lock(cluster, jobs, folder) -> None:
    (job, log), run = jobs["endless"], RunDirectory(folder / "endless")
    wait_for(lambda: any(r["stage"] == "internal_kd" for r in run.read_metrics()))
    cluster.signal(job)
    assert cluster.wait(job)["JobState"] == "CANCELLED"
    wait_for(lambda: "stopped by SIGTERM" in log.read_text(), 10)
    wait_for(lambda: not list(run.path.glob("lock.*")), 10)
    assert read_checkpoint(run.resume("internal_kd"), "")["global_step"] > 0 and "requeued" not in log.read_text()


def test_requeued_in_the_middle_of_three_stages_equals_undisturbed(cluster, jobs, interruptions, twin, folder) -> None:
    (job, log), run = jobs["interrupted"], RunDirectory(folder / "interrupted")
    steps = interruptions["interrupted"].result(300)
    ended = cluster.wait(job)
    text = log.read_text()
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("COMPLETED", "0:0", "3"), text
    assert text.count("stopped by SIGUSR1") == 3 and text.count(f"job {job} is requeued") == 3, text
    assert re.findall(r"resumed from step (\d+)", text) == [str(step) for step in steps]
    assert all(20 < step < 8 * EPOCHS for step in steps)
    assert "Traceback" not in text and "took the run directory over" not in text
    found, wanted = result(run, ALL), result(twin, ALL)
    for name in found["weights"]:
        assert found["weights"][name] == wanted["weights"][name], f"{name} has other weights"
    del found["summary"]["commit"], wanted["summary"]["commit"]  # of the source tree, while somebody may work in it
    for part in ("records", "summary"):
        assert found[part] == wanted[part]
    assert steps_of(run) == steps_of(twin) and logged(run) == logged(twin)


def test_a_requeued_run_is_one_run_of_wandb_with_each_step_of_an_undisturbed_one_once(
    cluster, jobs, interruptions, twin, folder, board
) -> None:
    """Online, of four attempts, each of which is told by SIGUSR1, and its W&B client beside it, to stop."""
    run = RunDirectory(folder / "interrupted")
    interruptions["interrupted"].result(300)
    log = jobs["interrupted"][1]
    assert cluster.wait(jobs["interrupted"][0])["JobState"] == "COMPLETED", log.read_text()
    assert list(board.runs) == [(run.path / "wandb_id").read_text()], log.read_text()
    [name] = board.runs
    assert len(list(run.path.glob("wandb/run-*"))) == 4 and board.runs[name]["exit"] == 0
    check_history(board.history(name), twin, ALL)
    tables = [f"{stage}/layers.table.json" for stage in ALL[1:]]
    assert sorted(board.uploads) == sorted(tables) and board.unknown == set()
    assert not list(run.path.glob("wandb/offline-*")) and not list(twin.path.glob("wandb*"))


def test_an_array_runs_tasks_and_seeds_each_in_its_directory(cluster, jobs, interruptions, folder) -> None:
    """The last of them, whose number is also the whole array's, is requeued once, by itself."""
    job, logs = jobs["array"]
    step = interruptions["cola-1"].result(300)
    runs = [(task, seed) for task in ("sst2", "cola") for seed in (0, 1)]
    for index, (task, seed) in enumerate(runs):
        ended, log = cluster.wait(f"{job}_{index}"), logs.parent / f"slurm-{job}_{index}.log"
        expected = ("COMPLETED", "0:0", "1" if index == 3 else "0")
        assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == expected, log.read_text()
        assert f"task {task}, seed {seed}" in log.read_text()
        summary = json.loads((folder / f"{task}-{seed}" / "summary.json").read_text())
        assert (summary["task"], summary["seed"]) == (task, seed)
    assert f"resumed from step {step[0]}\n" in log.read_text()
    assert f"job {job}_3 is requeued" in log.read_text()
    assert logs.name == f"slurm-{job}_[0-3].log" and logs.parent.parent == folder


def test_a_failed_run_is_a_failed_job_with_its_exit_code(cluster, jobs, folder) -> None:
    job, log = jobs["fails"]
    ended = cluster.wait(job)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "2:0", "0")
    assert "no better than a constant prediction" in log.read_text()
    assert not list((folder / "fails").glob("lock.*"))


def test_a_finished_run_is_not_run_again(cluster, jobs, folder, glue, capsys) -> None:
    """Neither by its script nor by a launch, alone or in an array."""
    assert cluster.wait(jobs["interrupted"][0])["JobState"] == "COMPLETED"
    run = folder / "interrupted"
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*.json*")}
    again = cluster.wait(cluster.sbatch(run / "job.sh"))
    assert (again["JobState"], again["ExitCode"]) == ("COMPLETED", "0:0")
    assert "finished, nothing to run" in (run / f"slurm-{again['JobId']}.log").read_text()
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*.json*")} == before
    queue = cluster.queue()
    alone = [*micro(run, glue), "task=sst2", *LONG, *SHORT, *QUANTIZED]
    array = [*micro(folder / "${task}-${seed}", glue)[1:], "--array=sst2", *TWO_STAGES]
    for arguments in (alone, array):
        capsys.readouterr()
        assert cli.main(["launch", str(GLUE), *arguments, *REQUEST]) == 0
        assert "finished, nothing to run" in capsys.readouterr().out
    assert cluster.queue() == queue


def test_the_job_after_a_killed_one_ends_as_undisturbed(cluster, folder, glue, capsys) -> None:
    """SIGKILL, as where a node's memory is exhausted: nothing is saved, and the lock stays."""
    run, whole = RunDirectory(folder / "killed"), RunDirectory(folder / "whole")
    words = [*TWO_STAGES, "run.checkpoint_every=7"]
    assert attempt([*micro(whole.path, glue), *words], folder / "whole.log") == 0, (folder / "whole.log").read_text()
    job, log = launch(lambda: capsys.readouterr().out, *micro(run.path, glue), *words, *REQUEST)
    wait_for(lambda: any(r["stage"] == "internal_kd" and r["step"] >= 20 for r in run.read_metrics()))
    [lock] = run.path.glob("lock.*")
    os.kill(json.loads(lock.read_text())["pid"], signal.SIGKILL)  # scancel would send SIGTERM first
    assert cluster.wait(job)["JobState"] == "FAILED"
    assert lock.is_file() and not run.finished("internal_kd") and "stopped by" not in log.read_text()
    job = cluster.sbatch(run.path / "job.sh")
    ended, text = cluster.wait(job), (run.path / f"slurm-{job}.log").read_text()
    assert ended["JobState"] == "COMPLETED", text
    assert "took the run directory over" in text and re.search(r"resumed from step (\d+)", text)
    for name in ("teacher", "internal_kd"):
        assert run.verified(name) == whole.verified(name), f"{name} has other weights"
    assert logged(run) == logged(whole)


def test_two_ranks_by_srun_stop_together_and_go_on(cluster, folder, glue, capsys) -> None:
    arguments = [*micro(folder / "two", glue), *TWO_STAGES, "run.devices=2"]
    job, log = launch(lambda: capsys.readouterr().out, *arguments, *REQUEST)
    step = interrupt(cluster, job, RunDirectory(folder / "two"), "internal_kd")
    ended, text = cluster.wait(job), log.read_text()
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("COMPLETED", "0:0", "1"), text
    assert ended["NumTasks"] == "2" and text.count("[1/2] teacher: 5 epochs") == 1
    assert f"resumed from step {step}\n" in text and "took the run directory over" not in text
    assert json.loads((folder / "two" / "summary.json").read_text())["final"] == "internal_kd"


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--partition=nowhere", ("invalid partition specified: nowhere",)),
        ("--time=soon", ("Invalid --time specification",)),
        ("--sbatch=--gres=gpu:9", ("Requested node configuration is not available",)),
    ],
)
def test_a_refusal_of_slurm_is_quoted(cluster, glue, tmp_path, capsys, option, words) -> None:
    assert cli.main(["launch", str(GLUE), *micro(tmp_path / "run", glue), *REQUEST, option]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: sbatch refuses the job: ") and all(word in message for word in words), message
    assert not (tmp_path / "run").exists() and "Traceback" not in message
