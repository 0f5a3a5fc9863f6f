"""Legs of one run on a W&B server, a stand-in on loopback: killed in between, offline, sent later, lost, refused."""

from __future__ import annotations

import signal
import time
from base64 import b64encode
from hashlib import md5

import pytest
from micro import BATCHES
from tracked import STAGES, check_history, launch, online, rows, start, train
from wandb_server import Board, wandb_server

from spikeprune.experiment.run_directory import RunDirectory

pytestmark = pytest.mark.slow


def check_artifacts(board: Board) -> None:
    """Tables are there, whole and sent once."""
    assert sorted(board.uploads) == sorted(f"{stage}/layers.table.json" for stage in STAGES[1:])
    for artifact in board.artifacts.values():
        digests = {name: b64encode(md5(data).digest()).decode() for name, data in artifact["files"].items()}
        contents = artifact["manifest"]["contents"]
        assert artifact["state"] == "COMMITTED" and {n: e["digest"] for n, e in contents.items()} == digests


def test_attempts_offline_and_online_killed_in_between_are_one_run(tmp_path, glue) -> None:
    run, log, command = RunDirectory(tmp_path / "run"), tmp_path / "log", train(tmp_path / "run", glue)
    with wandb_server() as board:
        assert start(command, log, kill=("internal_kd", BATCHES + 5)) == -signal.SIGKILL, log.read_text()
        assert board.runs == {}

        def heard() -> bool:  # of spatial, and so of all that the offline attempt had made, and all of an artifact
            stored = [artifact["state"] == "COMMITTED" for artifact in board.artifacts.values()]
            return any(stored) and any(row["_step"] > 5 * BATCHES for name in board.runs for row in board.history(name))

        assert start(command, log, online(board), kill=("spatial", 5), when=heard) == -signal.SIGKILL, log.read_text()
        assert heard()
        [name] = board.runs
        assert start(command, log, online(board)) == 0, log.read_text()
        assert log.read_text().count("resumed from step") == 2
        assert list(board.runs) == [name] == [(run.path / "wandb_id").read_text()]
        check_history(board.history(name), run)
        check_artifacts(board)
        assert board.runs[name]["exit"] == 0 and board.config(name)["student"]["leak"] == 1.0
        assert board.unknown == set()


def test_sync_makes_one_run_of_offline_attempts_and_sends_nothing_twice(tmp_path, glue) -> None:
    run, log, command = RunDirectory(tmp_path / "run"), tmp_path / "log", train(tmp_path / "run", glue)
    assert start(command, log, kill=("spatial", 5)) == -signal.SIGKILL, log.read_text()
    with wandb_server() as board:
        sync = ["sync", str(run.path)]
        assert start(sync, log, online(board)) == 0, log.read_text()
        [name] = board.runs
        assert len(board.history(name)) == len(rows(run)) == 5 * BATCHES + 4  # as far as the run has come
        assert start(command, log) == 0, log.read_text()
        for _ in range(2):
            assert start(sync, log, online(board)) == 0, log.read_text()
            assert list(board.runs) == [name]
            check_history(board.history(name), run)
            check_artifacts(board)
        assert board.summary(name)["final"] == "spatial"
        assert f"{run.path}: {board.url}/someone/spikeprune/runs/{name}" in log.read_text()


def test_a_server_that_goes_away_holds_no_run_up_and_gets_it_later(tmp_path, glue) -> None:
    run, log, command = RunDirectory(tmp_path / "run"), tmp_path / "log", train(tmp_path / "run", glue)
    with wandb_server() as board:
        child = launch(command, log, online(board), finish=2)
        while child.is_alive() and not run.finished("teacher"):
            time.sleep(0.05)
    child.join(180)
    assert child.exitcode == 0 and run.summary.is_file(), log.read_text()
    assert "the table spatial/layers is left out" in log.read_text()
    with wandb_server() as back:
        assert start(["sync", str(run.path)], log, online(back)) == 0, log.read_text()
        check_history(back.history((run.path / "wandb_id").read_text()), run)


def test_a_refused_key_is_one_sentence_and_nothing_is_trained(tmp_path, glue) -> None:
    with wandb_server() as board:
        code = start(train(tmp_path / "run", glue), tmp_path / "log", {**online(board), "WANDB_API_KEY": "short"})
    text = (tmp_path / "log").read_text()
    assert code == 2 and "error: W&B (" in text and "refused the run: WANDB_API_KEY invalid" in text
    assert "Traceback" not in text and not (tmp_path / "run" / "stages" / "teacher").exists()
