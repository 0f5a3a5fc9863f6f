"""RecordsLogger: every logged metric as a line of the run's `metrics.jsonl`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from spikeprune.rundir import RunDir


class RecordsLogger(Logger):
    """Lines `{"stage", "step", "global_step", …}`: `step` counts in the stage, `global_step` over the whole run."""

    def __init__(self, run: RunDir, *, stage: str, offset: int):
        super().__init__()
        self.run, self.stage, self.offset = run, stage, offset

    @property
    def name(self) -> str:
        return "records"

    @property
    def version(self) -> None:
        """None, so that the progress bar leaves it out."""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The run's configuration has its own file."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        step = step or 0
        values = {key: float(value) for key, value in metrics.items()}
        self.run.append_metrics({"stage": self.stage, "step": step, "global_step": self.offset + step, **values})
