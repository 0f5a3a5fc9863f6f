"""One trial of a local sweep: a run in a process of its own, and its scores so far."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spikeprune.config.derived import active_stages
from spikeprune.config.schema import Config
from spikeprune.errors import InputError
from spikeprune.experiment.reuse import common_stages
from spikeprune.experiment.run_directory import RunDirectory
from spikeprune.report.results import ENERGY, QUALITY, results
from spikeprune.training import signals


@dataclass
class Trial:
    """A trial: Optuna's object, its configuration, its run directory and, once started, its process."""

    trial: Any  # optuna.Trial
    values: dict[str, Any]
    config: Config
    run: RunDirectory
    process: subprocess.Popen | None = None
    slot: int = 0
    pruned: bool = False

    @property
    def number(self) -> int:
        return self.trial.number

    @property
    def log(self) -> Path:
        return self.run.path.with_suffix(".log")

    def start(self, words: Sequence[str], environment: dict[str, str]) -> None:
        """`spikeprune train` with these words. It ends with this process."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "spikeprune", "train", *words],
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=signals.end_with_parent,
            )

    def kill(self) -> None:
        self.process.kill()  # safe at any time: a run resumes from its last checkpoint
        self.process.wait()

    def made_for(self, other: Trial) -> int:
        """How many of the `other` trial's first stages this one has finished."""
        common = common_stages(self.config, other.config)
        return next((i for i, stage in enumerate(common) if not self.run.finished(stage)), len(common))

    def finished(self) -> list[str]:
        """The stages that it has finished, in order."""
        return [name for name in active_stages(self.config) if self.run.finished(name)]

    def steps(self) -> int:
        """The number of scores when it is finished; the teacher has none."""
        return len(active_stages(self.config)) - 1

    def scores(self, metric: str) -> list[float]:
        """The metric after each finished stage of the student, in order. Raises InputError where a stage's record is
        damaged, or lacks the metric, the score or the energy."""
        students = [name for name in self.finished() if name != "teacher"]
        if not students:
            return []
        teacher = self.run.record("teacher")
        found = [results(self.run.record(name), teacher) for name in students]
        for name, measured in zip(students, found, strict=True):
            if lacking := [key for key in (metric, QUALITY, ENERGY) if key not in measured]:
                raise InputError(
                    f"{self.run.path}: has no {lacking[0]} of stage {name}, or no finite one; remove the trial's "
                    "folder to run it again"
                )
        return [measured[metric] for measured in found]

    def why_failed(self, code: int | None) -> str:
        """The last line that it printed."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit code {code}"

    def print_line(self, text: str) -> None:
        print(f"[trial {self.number}] {text}", flush=True)
