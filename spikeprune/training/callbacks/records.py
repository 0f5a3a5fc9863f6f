"""RecordsLogger: every logged metric as a line of the run's `metrics.jsonl`, and to a further receiver."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from spikeprune.experiment.run_directory import RunDirectory


class RecordsLogger(Logger):
    """Lines `{"stage", "step", "global_step", …}`: `step` counts in the stage, `global_step` over the whole run.
    `also` receives each line, too."""

    def __init__(self, run: RunDirectory, *, stage: str, offset: int, also: Callable[[Mapping[str, Any]], None]):
        super().__init__()
        self.run, self.stage, self.offset, self.also = run, stage, offset, also

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
        record = {"stage": self.stage, "step": step, "global_step": self.offset + step, **values}
        self.run.append_metrics(record)
        self.also(record)
