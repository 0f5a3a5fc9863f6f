"""The interface between a run and an experiment tracker such as Weights & Biases.

A tracker is handed to `pipeline.run`, which calls it in the order of the methods below; the package that talks to a
server extends it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from spikeprune.config.schema import Config
from spikeprune.experiment.run_directory import RunDirectory


class Tracker:
    """Follows one run; this one does nothing with it. `check` and `opened` are called in every process, the other
    methods in rank 0 or in all."""

    def check(self, config: Config) -> None:
        """Before anything is written. Raises InputError for a tracker that the configuration asks for and that cannot
        be reached."""

    def opened(self, config: Config, directory: RunDirectory, stages: Sequence[str]) -> AbstractContextManager[None]:
        """A context in which the stages run; it learns of their failure by the exception."""
        return nullcontext()

    def stage_resumed(self, directory: RunDirectory, stage: str) -> None:
        """A stage continues from its checkpoint: `metrics.jsonl` holds the records of earlier attempts."""

    def log(self, record: Mapping[str, Any]) -> None:
        """One line of `metrics.jsonl`: `stage`, `step` (in the stage), `global_step` (in the run) and metrics."""

    def stage_done(self, directory: RunDirectory, stage: str, stages: Sequence[str]) -> None:
        """A stage has written its record."""

    def finished(self, summary: Mapping[str, Any]) -> None:
        """The run has written `summary.json`."""
