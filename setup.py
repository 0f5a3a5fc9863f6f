"""Puts the experiment files into the built package; everything else is in pyproject.toml."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

EXPERIMENTS = Path(__file__).parent / "experiments"


class BuildWithExperiments(build_py):
    """`spikeprune/experiments` in the wheel: what `config/resources.py` finds where there is no source tree."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for pattern in ("*.yaml", "slurm/*.sh"):
            for path in EXPERIMENTS.rglob(pattern):
                target = Path(self.build_lib, "spikeprune", "experiments", path.relative_to(EXPERIMENTS))
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)


setup(cmdclass={"build_py": BuildWithExperiments})
