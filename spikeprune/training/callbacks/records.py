"""A Lightning logger that hands each record of metrics to functions, such as one that writes `metrics.jsonl`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only


class RecordsLogger(Logger):
    """Records `{"stage", "step", "global_step", "time", metric: value, …}`: `step` counts in the stage, `global_step`
    over the whole run, of which `offset` steps lie before this stage; `time` is in seconds since 1970. Each of
    `writers` is called with every record."""

    def __init__(self, *writers: Callable[[dict[str, Any]], None], stage: str, offset: int):
        super().__init__()
        self.writers, self.stage, self.offset = writers, stage, offset

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
        place = {"stage": self.stage, "step": step, "global_step": self.offset + step}
        record = {**place, "time": round(time.time(), 2), **values}
        for write in self.writers:
            write(record)
