"""A run over two nodes of a real SLURM: what one process makes, though it was stopped in the middle."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster
from micro import ROOT, micro, write_sst2
from test_slurm import REQUEST, interrupt, launch, wait_for
from together import EXACT, attempt, check_measurements, check_weights, together

from spikeprune.experiment.run_directory import RunDirectory

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def cluster(tmp_path, monkeypatch) -> Iterator[Cluster]:
    made = Cluster(tmp_path / "slurm", cpus=1, nodes=2)
    for name, value in {**made.environment, "PYTHONPATH": str(ROOT)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(ROOT)
    made.start()
    yield made
    made.stop_jobs()
    made.stop()


def tasks(job: str) -> dict[int, tuple[str, str]]:
    """Process number -> (rank, node) of those that srun has started for a job."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            if Path(f"/proc/{parent}/comm").read_text() != "slurmstepd\n":
                continue
            lines = (folder / "environ").read_text().split("\0")
        except OSError:  # it has ended meanwhile, or is somebody else's
            continue
        words = dict(line.partition("=")[::2] for line in lines)
        if words.get("SLURM_JOB_ID") == job and "SLURM_STEP_ID" in words:
            found[int(folder.name)] = words["SLURM_PROCID"], words["SLURMD_NODENAME"]
    return found


def test_two_nodes_stop_together_and_learn_what_one_process_learns(cluster, tmp_path, capsys) -> None:
    glue, pair = (
        write_sst2(tmp_path / "glue", train=61, dev=21),
        (RunDirectory(tmp_path / "one"), RunDirectory(tmp_path / "two")),
    )
    one, two = pair
    plain = [[*micro(run.path, glue), *EXACT, "stages.internal_kd.epochs=8"] for run in pair]
    job, log = launch(lambda: capsys.readouterr().out, *plain[1], "--nodes=2", *REQUEST)
    started = wait_for(lambda: list(two.path.glob("lock.*")) and tasks(job))
    assert sorted(started.values()) == [("0", "127.0.0.1"), ("1", "127.0.0.2")]
    [lock] = two.path.glob("lock.*")
    assert started[json.loads(lock.read_text())["pid"]][0] == "0"
    step = interrupt(cluster, job, two, "internal_kd")
    assert together(1, tmp_path / "log", attempt, plain[0], tmp_path) == [0]
    ended, text = cluster.wait(job), log.read_text()
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("COMPLETED", "0:0", "1"), text
    assert (ended["NumNodes"], ended["NumTasks"]) == ("2", "2")
    assert text.count("stopped by SIGUSR1") == 1 and f"resumed from step {step}\n" in text
    assert "took the run directory over" not in text and "Traceback" not in text
    check_weights(one, two, rtol=1e-4)
    check_measurements(one, two)
    files = [{str(path.relative_to(run.path)) for path in run.path.rglob("*")} for run in pair]
    assert files[1] - files[0] == {"job.sh", log.name} and not files[0] - files[1]
