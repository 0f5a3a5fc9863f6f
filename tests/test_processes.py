"""Starting several processes: by one command, by others; what they say to each other; what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from children import begin, run_command
from micro import GLUE, ROOT, micro, only
from together import attempt, free_port, together

from spikeprune import distributed
from spikeprune.config.load import load
from spikeprune.config.schema import Config, Run
from spikeprune.errors import InputError
from spikeprune.experiment import processes

pytestmark = pytest.mark.filterwarnings("ignore")


def test_one_command_starts_both_and_logs_one_wandb_run(tmp_path, glue) -> None:
    stages = only("teacher", "general_kd")
    (tmp_path / "corpus.txt").write_text("\n".join(["the film was a story of rain"] * 20))
    stages += ["stages.general_kd.epochs=1", f"data.corpus=[{tmp_path / 'corpus.txt'}]", "run.wandb=auto"]
    overrides = [*micro(tmp_path / "run", glue), *stages, "run.devices=2"]
    offline = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_API_KEY": "", "PYTHONPATH": str(ROOT)}
    code = run_command(["train", str(GLUE), *overrides], log := tmp_path / "log", offline)
    said = log.read_text()
    assert code == 0 and said.count("[1/2] teacher") == said.count("· preset tiny ·") == 1, said
    files = list((tmp_path / "run").rglob("offline-run-*/run-*.wandb"))
    assert {path.name for path in files} == {f"run-{(tmp_path / 'run' / 'wandb_id').read_text()}.wandb"}


def test_bad_input_is_one_sentence_of_one_process(tmp_path) -> None:
    """Found by rank 0 when both are there already."""
    missing = [*micro(tmp_path / "run"), "task=sst2", "data.source=dir", f"data.dir={tmp_path}", "run.devices=2"]
    assert together(2, tmp_path / "log", attempt, missing, tmp_path) == [2, 0]
    said = (tmp_path / "log").read_text()
    assert said.count("error: ") == 1 and "has no directory SST-2" in said and "Traceback" not in said, said
    assert not (tmp_path / "run").exists()


def speak(folder: Path) -> int:
    """What the ranks say to each other; run in each of them."""
    with processes.started(load(GLUE, [*micro(folder / "run"), "task=sst2", "run.devices=3"])):
        me = distributed.rank()
        assert (distributed.world(), distributed.gather(me), distributed.from_rank_zero(lambda: me)) == (
            3,
            [0, 1, 2],
            0,
        )
        assert distributed.total(torch.tensor([float(me), 1.0])).tolist() == [3.0, 3.0]
        means = distributed.gather(distributed.mean(torch.tensor([0.1, 0.7]) * (me + 0.3)).tolist())
        assert means[0] == means[1] == means[2] == pytest.approx([0.13, 0.91])
        distributed.require_equal("word", "a word")
        try:
            distributed.require_equal(me // 2, "a number")
        except RuntimeError as error:
            assert str(error) == "a number of rank 2 is not that of rank 0"
        else:
            raise AssertionError("another number passed as the same")
        torch.manual_seed(5)
        distributed.own_randomness()
        assert len(set(distributed.gather(torch.rand(()).item()))) == 3
        torch.manual_seed(5)
        assert me or torch.rand(()).item() == ranks_first_draw()
        try:
            distributed.from_rank_zero(no_data)
        except SystemExit as quietly:
            assert me and quietly.code == 0
        except InputError:
            assert me == 0
        (folder / f"reached{me}").touch()
    assert me == 0, "only rank 0 returns"
    return 0


def ranks_first_draw() -> float:
    return torch.rand((), generator=torch.Generator().manual_seed(5)).item()


def no_data() -> None:
    raise InputError("there are no data")


def test_what_ranks_say_to_each_other(tmp_path) -> None:
    assert together(3, tmp_path / "log", speak, tmp_path) == [0, 0, 0], (tmp_path / "log").read_text()
    assert all((tmp_path / f"reached{rank}").exists() for rank in range(3)), (tmp_path / "log").read_text()


PARENT = """
import subprocess, sys, time
from spikeprune.training.signals import end_with_parent
child = subprocess.Popen(["sleep", "60"], preexec_fn=end_with_parent)
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's end")
def test_a_process_ends_with_its_parent_however_that_goes() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    stat = Path(f"/proc/{int(parent.stdout.readline())}/stat")
    assert stat.is_file()
    parent.kill()
    parent.wait()
    until = time.monotonic() + 10
    while stat.is_file() and ") Z" not in stat.read_text():
        assert time.monotonic() < until, "it outlives its parent"
        time.sleep(0.02)


def test_a_process_whose_parent_is_dead_already_does_not_wait_for_it(tmp_path, glue) -> None:
    """Killed while the second process was importing, before that could ask to end with it."""
    rank = {"LOCAL_RANK": "1", "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    words = ["train", str(GLUE), *micro(tmp_path / "run", glue), "run.devices=2"]
    child = begin(words, tmp_path / "log", rank | {processes.PARENT: "0"})
    child.join(60)
    assert child.exitcode == 0, (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("run", "environment", "message"),
    [
        ({"num_nodes": 2}, {}, "the run is started on one machine only; use srun"),
        ({"devices": 2}, {"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "x"}, "start it with srun"),
        (
            {"devices": 2},
            {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "4", "SLURM_JOB_NAME": "x", "SLURM_STEP_ID": "0"},
            "srun has started 4 tasks; give --ntasks-per-node=2",
        ),
        (
            {},
            {"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4", "SLURM_JOB_NAME": "x", "SLURM_STEP_ID": "0"},
            "srun has started 4 tasks; give --ntasks-per-node=1",
        ),
        ({"devices": 2}, {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "3"}, "torchrun has started 3 processes"),
        ({}, {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2"}, "torchrun has started 2 processes"),
        ({}, {"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "x"}, None),
        ({}, {"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "x", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"}, None),
    ],
)
def test_a_launcher_that_does_not_fit_is_refused(run, environment, message, monkeypatch) -> None:
    """In a script of SLURM's without srun one device is one process, however many tasks the job has."""
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = Config(run=Run(accelerator="cpu", **run))
    with pytest.raises(InputError, match=message) if message else nullcontext(), processes.started(config):
        assert message is None


def test_a_batch_must_have_a_sentence_for_each_process(tmp_path) -> None:
    with pytest.raises(InputError) as problem:
        load(GLUE, [*micro(tmp_path), "task=sst2", "run.devices=4", "run.num_nodes=3", "stages.spatial.batch_size=16"])
    assert "data.batch_size = 8: is shared by all devices, run.devices × run.num_nodes = 12" in str(problem.value)
    assert "stages.spatial" not in str(problem.value)
