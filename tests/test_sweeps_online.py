"""Sweeps on a W&B server (a stand-in on loopback), run by W&B's own agent, also as an array job."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster
from micro import ROOT
from test_slurm import wait_for
from tiny_sweep import sweep, tiny, write
from wandb_server import Board, wandb_server

from spikeprune.errors import InputError
from spikeprune.experiment.run_directory import RunDirectory
from spikeprune.integrations.sweeps import spec
from spikeprune.report.results import results

pytestmark = pytest.mark.filterwarnings("ignore")


def online(board: Board, folder: Path) -> dict[str, str]:
    """Of clients and agents that speak to the server more often than every 5 and 15 s."""
    key = {"WANDB_BASE_URL": board.url, "WANDB_API_KEY": "0" * 40, "WANDB_DIR": str(folder)}
    often = {"WANDB_AGENT_REPORT_INTERVAL": "1", "WANDB__FILE_STREAM_TRANSMIT_INTERVAL": "0.1"}
    return {**key, **often, "WANDB_ERROR_REPORTING": "false"}


@pytest.mark.slow
def test_a_grid_of_four_by_wandbs_agent(glue, tmp_path) -> None:
    tree = tiny(glue)
    words = [w.replace("runs/", f"{tmp_path}/runs/") if w.startswith("run.dir") else w for w in tree["command"]]
    tree["command"] = words
    file = write(tmp_path / "tiny.yaml", tree)
    with wandb_server() as board:
        printed = sweep(tmp_path / "log", str(file), **online(board, tmp_path))
        assert "sweep: spikeprune/sweep1" in printed
        assert board.sweeps["sweep1"]["config"]["parameters"] == tree["parameters"] and board.unknown == set()
        given = board.sweeps["sweep1"]["given"]
        assert set(board.runs) == set(given) == {"trial1", "trial2", "trial3", "trial4"}
        for name, values in given.items():
            assert board.runs[name]["exit"] == 0 and board.runs[name]["sweep"] == "sweep1"
            run = RunDirectory(tmp_path / "runs" / "sweeps" / "tiny" / name)
            config = board.config(name)
            heads = config["stages"]["spatial"]["heads"]
            assert heads == values["stages.spatial.heads"] == config["stages.spatial.heads"]
            found = results(run.record("spatial"), run.record("teacher"))
            summary = board.summary(name)
            assert {key: summary[key] for key in found} == pytest.approx(found)
            steps = [row["_step"] for row in board.history(name)]
            assert steps == list(range(run.record("teacher")["steps"] + run.record("spatial")["steps"]))


@pytest.fixture
def cluster(tmp_path, monkeypatch) -> Iterator[Cluster]:
    """A SLURM of one node on loopback."""
    made = Cluster(tmp_path / "slurm", cpus=2)
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    made.start()
    yield made
    made.stop_jobs()
    made.stop()


@pytest.mark.slow
@pytest.mark.slurm
def test_an_array_job_of_agents(cluster, glue, tmp_path, monkeypatch) -> None:
    """One is stopped as before its time limit, of which the script asks SLURM to tell the agent: it has no job step."""
    assert "\n#SBATCH --signal=B:USR1@90\n" in (ROOT / "experiments" / "slurm" / "sweep.sh").read_text()
    tree = tiny(glue)
    tree["parameters"] |= {"stages.spatial.ffn": {"value": 0.2}}
    tree["command"] = [
        w.replace("runs/", f"{tmp_path}/runs/") if w.startswith("run.dir") else w for w in tree["command"]
    ]
    file = write(tmp_path / "tiny.yaml", tree)
    monkeypatch.chdir(ROOT)
    with wandb_server() as board:
        more = online(board, tmp_path)
        printed = sweep(tmp_path / "log", str(file), "--slurm=--partition=nowhere", code=2, **more)
        assert "error: sbatch refuses the job: " in printed and "invalid partition" in printed
        assert board.sweeps == {}
        printed = sweep(tmp_path / "log", str(file), f"--slurm=--output={tmp_path}/%a.log", **more)
        assert "--array=1-2 experiments/slurm/sweep.sh spikeprune/sweep1" in printed
        job = re.search(r"Submitted batch job (\d+)", printed)[1]
        lock = wait_for(lambda: next(tmp_path.glob("runs/sweeps/tiny/trial1/lock.*"), None))
        stopped = json.loads(lock.read_text())["job"]
        cluster.signal(stopped, "USR1", "--batch")
        ends = [cluster.wait(f"{job}_{index}") for index in (1, 2)]
        logs = "".join((tmp_path / f"{i}.log").read_text() for i in (1, 2))
        assert {name: run["exit"] for name, run in board.runs.items()} == {"trial1": 0, "trial2": 0}, logs
        assert [end["JobState"] for end in ends] == ["COMPLETED", "COMPLETED"], logs
        restarts = {f"{job}_{index}": end["Restarts"] for index, end in enumerate(ends, 1)}
        assert restarts == {f"{job}_1": "0", f"{job}_2": "0", stopped: "1"}, logs
        assert f"job {stopped} is requeued" in logs and board.sweeps["sweep1"]["left"] == []


def test_an_unknown_sweep_value_is_refused_before_the_server_hears_of_it(glue, tmp_path, monkeypatch) -> None:
    with wandb_server() as board:
        monkeypatch.setenv("WANDB_BASE_URL", board.url)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        with pytest.raises(InputError, match="stages.spatial.heds: unknown key"):
            spec.read(write(tmp_path / "s.yaml", tiny(glue)), ["stages.spatial.heds=1"])
        assert board.sweeps == {}
