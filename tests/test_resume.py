"""A run that is killed in the middle of an epoch, three times, ends as the run that nobody disturbed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
from children import attempt, kill_in_validation, run_command
from micro import BATCHES, GLUE, STAGES, logged, micro, only

from spikeprune.config.load import load
from spikeprune.errors import InputError
from spikeprune.experiment import pipeline
from spikeprune.experiment.run_directory import RunDirectory
from spikeprune.training.callbacks.resume import AtomicCheckpointIO

# a limit that is still falling where runs are killed
FALLING = ["stages.spatial.losses={additions: 2, additions_limit: 0.1}"]  # falls while units are removed


def command_of(folder: Path, glue: Path) -> list[str]:
    return [*micro(folder, glue), *FALLING, "stages.spatial.synapses=0.6"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, glue) -> RunDirectory:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert attempt(command_of(folder / "run", glue), folder / "log") == 0, (folder / "log").read_text()
    return RunDirectory(folder / "run")


def result(run: RunDirectory, stages: Sequence[str] = STAGES) -> dict:
    """All that a run leaves, but for the time it took and its own path."""
    summary = run.read_summary()
    records = {name: run.record(name) for name in stages}
    for row in (summary["teacher"], *summary["stages"].values(), *records.values()):
        assert row.pop("seconds") > 0
    files = sorted(str(path.relative_to(run.path)) for path in run.path.rglob("*") if path.is_file())
    weights = {name: (run.stage(name) / "model.safetensors").read_bytes() for name in stages}
    return {"files": files, "records": records, "summary": summary, "weights": weights}


def steps_of(run: RunDirectory) -> list[tuple]:
    """(stage, step, what was logged) of every record."""
    return [(r["stage"], r["step"], tuple(sorted(set(r) - {"epoch"}))) for r in run.read_metrics()]


CHAINS = {
    # a checkpoint at each epoch's end: the killed epoch is done again
    "each epoch": (
        [],
        [("teacher", BATCHES + 3), ("internal_kd", BATCHES + 5), ("spatial", BATCHES + 2), ("temporal", BATCHES + 4)],
    ),
    # a checkpoint every three steps: the killed epoch resumes in its middle. At step 5 the first epoch has decided
    # what to prune; at 10 the checkpoint is of the second epoch.
    "every 3 steps": (
        ["run.checkpoint_every=3"],
        [("teacher", BATCHES + 3), ("internal_kd", 5), ("spatial", 5), ("spatial", 23), ("temporal", 10)],
    ),
}


@pytest.mark.parametrize("chain", CHAINS)
def test_killed_and_resumed_equals_undisturbed(chain, undisturbed, glue, tmp_path) -> None:
    how, kills = CHAINS[chain]
    run, log, command = RunDirectory(tmp_path / "run"), tmp_path / "log", [*command_of(tmp_path / "run", glue), *how]
    for stage, step in kills:
        assert attempt(command, log, (stage, step)) == -signal.SIGKILL, log.read_text()
        assert run.resume(stage).is_file() and not run.finished(stage) and not run.summary.exists()
    assert attempt(command, log) == 0, log.read_text()
    assert log.read_text().count("resumed from step") == len(kills)
    found, wanted = result(run), result(undisturbed)
    for name in STAGES:  # masks, t_steps and thresholds are among the tensors
        assert found["weights"][name] == wanted["weights"][name], f"{name} has other weights"
    assert found == wanted
    assert len(set(steps_of(run))) == len(steps_of(run))  # no step is logged twice
    assert steps_of(run) == steps_of(undisturbed)
    assert logged(run) == logged(undisturbed)


def test_killed_in_a_validation_behind_a_checkpoint(undisturbed, glue, tmp_path) -> None:
    """The step of a checkpoint is the last one of an epoch: what its validation measures is not left out."""
    run, log = RunDirectory(tmp_path / "run"), tmp_path / "log"
    words = ["train", str(GLUE), *command_of(run.path, glue), "run.checkpoint_every=4"]
    for stage, step in (("internal_kd", BATCHES), ("spatial", 3 * BATCHES)):
        assert run_command(words, log, None, kill_in_validation, (stage, step)) == -signal.SIGKILL, log.read_text()
    assert run_command(words, log) == 0, log.read_text()
    assert result(run) == result(undisturbed) and logged(run) == logged(undisturbed)


def kill_behind_a_checkpoint() -> None:
    save = AtomicCheckpointIO.save_checkpoint

    def kill(*args, **how) -> None:
        save(*args, **how)
        os.kill(os.getpid(), signal.SIGKILL)

    AtomicCheckpointIO.save_checkpoint = kill


def test_killed_as_soon_as_a_checkpoint_is_written(glue, tmp_path) -> None:
    """The record of the checkpoint's step is not left out."""
    short, log = [*only(), "stages.teacher.epochs=2", "run.checkpoint_every=3"], tmp_path / "log"
    plain, killed = RunDirectory(tmp_path / "plain"), RunDirectory(tmp_path / "killed")
    assert attempt([*command_of(plain.path, glue), *short], log) == 0, log.read_text()
    words = ["train", str(GLUE), *command_of(killed.path, glue), *short]
    for _ in range(2):
        assert run_command(words, log, None, kill_behind_a_checkpoint) == -signal.SIGKILL, log.read_text()
    assert run_command(words, log) == 0, log.read_text()
    assert "resumed from step 6" in log.read_text() and logged(killed) == logged(plain)


def kill_behind_the_summary() -> None:
    pipeline.write_own = lambda *_: os.kill(os.getpid(), signal.SIGKILL)


def test_killed_behind_the_summary(glue, tmp_path) -> None:
    """What is written after it is not left out."""
    run, log = RunDirectory(tmp_path / "run"), tmp_path / "log"
    words = ["train", str(GLUE), *command_of(run.path, glue), *only(), "stages.teacher.epochs=2"]
    assert run_command(words, log, None, kill_behind_the_summary) == -signal.SIGKILL, log.read_text()
    assert run.summary.is_file() and not (run.path / "report.html").exists()
    assert run_command(words, log) == 0 and "finished, nothing to run" in log.read_text(), log.read_text()
    assert (run.path / "report.html").is_file() and (run.path / "metrics.csv").is_file()


def test_what_was_pruned_differs_from_stage_to_stage(undisturbed) -> None:
    """Or the test above would compare networks in which nothing happened."""
    stages = result(undisturbed)["summary"]["stages"]
    assert sum(stages["prediction_kd"]["heads"]) == 6 and sum(stages["spatial"]["heads"]) == 3
    assert sum(stages["prediction_kd"]["ffn"]) == 74 and sum(stages["spatial"]["ffn"]) == 22
    assert stages["spatial"]["t_steps"] == [4, 4, 4] and sum(stages["temporal"]["t_steps"]) <= 6


# --------------------------------------------------------------------------------------------------- mixed-up run files


@pytest.fixture
def half(undisturbed, tmp_path) -> RunDirectory:
    """A copy of the finished run whose last stage is still to be made."""
    import shutil

    shutil.copytree(undisturbed.path, tmp_path / "run")
    run = RunDirectory(tmp_path / "run")
    run.summary.unlink()
    shutil.rmtree(run.stage("finetune"))
    return run


def config_of(run: RunDirectory, glue: Path):
    return load(GLUE, command_of(run.path, glue))


def swap_weights(run: RunDirectory) -> None:
    """Another stage's weights, which fit the network but not the record."""
    data = (run.stage("spatial") / "model.safetensors").read_bytes()
    (run.stage("temporal") / "model.safetensors").write_bytes(data)


def cut_weights(run: RunDirectory) -> None:
    path = run.stage("temporal") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def remove_weights(run: RunDirectory) -> None:
    (run.stage("temporal") / "model.safetensors").unlink()


@pytest.mark.parametrize("damage", [swap_weights, cut_weights, remove_weights])
def test_a_stage_is_not_built_on_a_damaged_one(half, glue, damage) -> None:
    damage(half)
    with pytest.raises(InputError, match=r"temporal/model.safetensors: is missing or not the file that record.json"):
        pipeline.run(config_of(half, glue))
    assert not half.finished("finetune") and not half.summary.exists()


def test_an_earlier_stage_is_verified_and_a_checkpoint_behind_its_record_goes(half, glue) -> None:
    half.resume("spatial").write_bytes(b"left by a kill")
    assert half.kept("spatial") and not half.resume("spatial").exists() and not half.kept("finetune")
    (half.stage("internal_kd") / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"internal_kd/model.safetensors: is missing or not the file"):
        pipeline.run(config_of(half, glue))


def test_a_stage_begins_again_where_one_before_it_does(half, glue, undisturbed) -> None:
    """An earlier attempt has left a checkpoint of the last stage, and the record of another one is gone."""
    half.make_stage("finetune")
    half.resume("finetune").write_bytes(b"of an earlier attempt")
    (half.stage("spatial") / "record.json").unlink()
    pipeline.run(config_of(half, glue))
    found, wanted = (sorted(logged(run), key=json.dumps) for run in (half, undisturbed))
    assert result(half) == result(undisturbed) and found == wanted


def test_a_damaged_teacher_is_refused(half, glue) -> None:
    path = half.stage("teacher") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match="teacher"):
        pipeline.run(config_of(half, glue))


def test_a_damaged_resume_checkpoint_is_refused(half, glue) -> None:
    half.resume("finetune").parent.mkdir()
    half.resume("finetune").write_bytes(b"half a file")
    with pytest.raises(InputError, match="resume.ckpt"):
        pipeline.run(config_of(half, glue))


def test_ctrl_c_prints_how_to_resume_and_the_run_resumes(tmp_path, glue, undisturbed) -> None:
    overrides, log = command_of(tmp_path / "run", glue), tmp_path / "log"
    assert attempt(overrides, log, ("prediction_kd", 5), signal.SIGINT) == 130
    assert "the same command resumes" in log.read_text() and "Traceback" not in log.read_text()
    assert attempt(overrides, log) == 0, log.read_text()
    assert result(RunDirectory(tmp_path / "run"))["weights"] == result(undisturbed)["weights"]
