"""What a built wheel carries: the experiment files and the metadata; installed alone, it trains."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from micro import ROOT, micro, write_sst2

from spikeprune import __version__
from spikeprune.config import resources
from spikeprune.config.load import load
from spikeprune.runtime import library

EXPERIMENTS = ROOT / "experiments"
SOURCES = ("spikeprune", "experiments", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")


def run(*words: object, cwd: Path, **environment: str) -> str:
    outside = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = list(map(str, words))
    done = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=cwd, env={**outside, **environment})
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy of the source tree, without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, folder / name)
    pip = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet")
    run(*pip, "--wheel-dir", folder / "dist", folder, cwd=folder)
    return next((folder / "dist").glob("*.whl"))


@pytest.mark.slow
def test_it_carries_experiments_and_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        [path] = [name for name in names if name.endswith("dist-info/METADATA")]
        metadata = Parser().parsestr(archive.read(path).decode())
    files = [path for pattern in ("*.yaml", "slurm/*.sh") for path in EXPERIMENTS.rglob(pattern)]
    assert {f"spikeprune/experiments/{path.relative_to(EXPERIMENTS).as_posix()}" for path in files} <= names
    assert {f"spikeprune/runtime/{name}" for name in library.FILES} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert (metadata["License-Expression"], metadata["Version"]) == ("Apache-2.0", __version__)
    assert "SpikePrune developers" in metadata["Author"] and metadata["Keywords"] and metadata.get_all("Classifier")
    assert metadata["Description-Content-Type"] == "text/markdown"


@pytest.mark.slow
def test_installed_alone_it_trains_in_an_empty_directory(wheel: Path, tmp_path: Path) -> None:
    glue, venv, empty = write_sst2(tmp_path / "glue"), tmp_path / "venv", tmp_path / "empty"
    empty.mkdir()
    run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=tmp_path)
    python = venv / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=empty).strip())
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", site, wheel, cwd=tmp_path)
    (site / "locked.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")  # behind the wheel's own
    words = [word for word in micro(empty / "run", glue) if word != "preset=tiny"]
    started = (python, "-m", "spikeprune", "train", "preset=tiny", *words)
    printed = run(*started, cwd=empty, WANDB_MODE="disabled")
    assert (empty / "run" / "summary.json").is_file() and "dense teacher" in printed
    found = run(python, "-c", "import spikeprune; print(spikeprune.__file__)", cwd=empty).strip()
    assert Path(found).is_relative_to(site)


def test_a_preset_is_found_beside_the_file_before_the_package(tmp_path: Path) -> None:
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets" / "own.yaml").write_text("seed: 7\n", encoding="utf-8")
    (tmp_path / "presets" / "tiny.yaml").write_text("seed: 9\n", encoding="utf-8")
    (tmp_path / "mine.yaml").write_text("task: rte\n", encoding="utf-8")
    assert load(tmp_path / "mine.yaml", ["preset=own"]).seed == 7
    assert load(tmp_path / "mine.yaml", ["preset=tiny"]).seed == 9
    assert load(tmp_path / "mine.yaml", ["preset=minilm"]).data == load(EXPERIMENTS / "presets/minilm.yaml").data
    assert resources.experiment_file().resolve() == EXPERIMENTS / "glue.yaml"


def test_the_citation_is_of_this_version() -> None:
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.+)$", text, re.MULTILINE).group(1) == __version__
