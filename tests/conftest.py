"""Skips for what a machine may lack, the real data beside the checkout, and two threads for torch."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import textwrap
from pathlib import Path

import pytest
from hypothesis import settings

# read when torch is imported; subprocesses inherit it, and workers what the process that started them has set
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "2")
# several test files at a time: spinning threads would hold each other up
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test waits for a network
gc.disable()  # while everything is imported, which it slows down by a fifth

from micro import write_cola, write_sst2  # noqa: E402 - imports torch

pytest.register_assert_rewrite("tracked", "together", "cluster")

settings.register_profile("spikeprune", deadline=None, max_examples=50)  # machines differ in speed
settings.load_profile("spikeprune")

ROOT = Path(__file__).resolve().parents[1]


def _no_gpu() -> str:
    import torch

    return "" if torch.cuda.is_available() else "no CUDA device"


def _no_program(*names: str) -> str:
    missing = [name for name in names if shutil.which(name) is None]
    return f"not on PATH: {', '.join(missing)}" if missing else ""


MISSING = {
    "gpu": _no_gpu,
    "slurm": lambda: _no_program("slurmctld", "slurmd", "sbatch", "munged"),
    "compiler": lambda: _no_program("cc"),
    "browser": lambda: _no_program("chromium"),
}


# files that take longest, first: workers share out whole files, and the last should be a short one
LONGEST = (
    "slurm",
    "sweeps_online",
    "sweeps_local",
    "tracking_attempts",
    "embedded",
    "nodes",
    "ddp",
    "joint_run",
    "preempt",
    "fetch",
    "processes",
    "resume",
    "bench",
    "sweeps",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_runtest_setup(item: pytest.Item) -> None:
    for name, reason in MISSING.items():
        if item.get_closest_marker(name) and (text := reason()):
            pytest.skip(text)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder beside the checkout with real GLUE tasks, a corpus and a checkpoint."""
    folder = Path(os.environ.get("SPIKEPRUNE_SHARED", ROOT.parent / "shared"))
    if not (folder / "glue").is_dir():
        pytest.skip(f"no real data at {folder}; set SPIKEPRUNE_SHARED to its folder")
    return folder


@pytest.fixture(scope="session")
def glue(tmp_path_factory) -> Path:
    """A GLUE directory of sixty sentences, as SST-2 and as CoLA; only to be read."""
    return write_cola(write_sst2(tmp_path_factory.mktemp("glue")))


@pytest.fixture(autouse=True)
def no_wandb_service():
    """wandb used in this process leaves the address of its server process to children. They would share it, and the run
    of one that was killed stays open there."""
    yield
    os.environ.pop("WANDB_SERVICE", None)


@pytest.fixture
def write(tmp_path: Path):
    """Writes a file of that name into the test's folder."""

    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    return write


@pytest.fixture
def empty(write) -> Path:
    return write("empty.yaml", "")


@pytest.fixture
def make(tmp_path, monkeypatch):
    """`make` where both programs of the environment write down their words; returns (program, its words)."""
    for name in ("spikeprune", "python"):
        (tmp_path / name).write_text(f'#!/bin/sh\nprintf "%s\\0" {name} "$@" > {tmp_path}/words\n')
        (tmp_path / name).chmod(0o755)
    monkeypatch.chdir(ROOT)
    # what a `make test ARGS=…` around all this was told is not for these
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}

    def make(*arguments: str) -> tuple[str, list[str]]:
        (tmp_path / "words").unlink(missing_ok=True)
        command = ["make", "-s", "-o", ".venv/.installed", f"BIN={tmp_path}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            return "", [done.stderr]
        program, *words = (tmp_path / "words").read_text().split("\0")[:-1]
        return program, words

    return make
