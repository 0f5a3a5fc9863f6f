"""A Weights & Biases run while its stages run: opened once, a group of charts per stage, results at each stage's end.

Every value goes into the row of its true step, counted over all stages. Each attempt of a run first logs again what
`metrics.jsonl` and the stages' records hold of the earlier attempts; rows that the server has are left out. So an
online run is complete though an earlier attempt was offline or killed, the newest offline attempt holds the whole run,
and `sync` needs the run directory alone.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from spikeprune import distributed
from spikeprune.config.derived import active_stages
from spikeprune.config.load import read_resolved
from spikeprune.config.schema import Config
from spikeprune.errors import InputError
from spikeprune.experiment.run_directory import RunDirectory
from spikeprune.experiment.tracking import Tracker
from spikeprune.files import jsonfile
from spikeprune.files.atomic import write_atomic
from spikeprune.integrations.labels import label
from spikeprune.integrations.wandb import server
from spikeprune.report.results import layer_rows, results

INIT_TIMEOUT = 30  # seconds; wandb's own is 90
NOT_CHARTED = ("stage", "step", "global_step", "time", "rate", "heads", "ffn", "t_steps")
FINISH_TIMEOUT = 30  # seconds; wandb itself waits without end


class WandbTracker(Tracker):
    """Of several processes rank 0 has the run. wandb keeps the run of a process itself (`wandb.run`), where the methods
    look it up; in other processes, and without a run, they do nothing.

    `wait` for the server at the end until everything is sent; otherwise a server that is gone costs FINISH_TIMEOUT and
    `spikeprune sync` sends the rest.
    """

    def __init__(self, mode: str = "off", wait: bool = False) -> None:
        self.mode, self.wait = mode, wait

    def check(self, config: Config) -> None:
        """Choose between off, offline and online. Raises InputError where `run.wandb=online` cannot be."""
        self.mode = distributed.from_rank_zero(lambda: server.chosen_mode(config))

    @contextmanager
    def opened(self, config: Config, directory: RunDirectory, stages: Sequence[str]) -> Iterator[None]:
        """Raises InputError where the server refuses the run."""
        if self.mode == "off":
            yield
            return
        distributed.from_rank_zero(lambda: self._open(config, directory, stages))
        try:
            yield
        except BaseException as error:
            run = current_run()
            if run is not None and not isinstance(error, Exception):
                run.mark_preempting()  # interrupted, not failed: a sweep's agent may start the trial again
            if run is not None:
                run.finish(exit_code=1)
            raise
        if current_run() is not None:
            current_run().finish()

    def _open(self, config: Config, directory: RunDirectory, stages: Sequence[str]) -> None:
        import wandb

        try:
            run = wandb.init(
                project=os.environ.get("WANDB_PROJECT") or "spikeprune",
                id=wandb_id(directory),
                name=label(directory.path),
                resume="allow",
                dir=directory.path,
                config=asdict(config),
                mode=self.mode,
                settings=wandb.Settings(init_timeout=INIT_TIMEOUT, finish_timeout=0 if self.wait else FINISH_TIMEOUT),
            )
        except wandb.errors.Error as error:
            raise InputError(
                f"W&B ({server.address()}) refused the run: {str(error).splitlines()[0]}; mend the key, or use "
                "run.wandb=offline"
            ) from None
        run.define_metric("global_step", hidden=True)
        for group in (*stages, "result"):
            run.define_metric(f"{group}/*", step_metric="global_step")
        for stage in (name for name in stages if directory.finished(name)):
            self.stage_resumed(directory, stage)
            self.stage_done(directory, stage, stages)

    def stage_resumed(self, directory: RunDirectory, stage: str) -> None:
        """Log again what earlier attempts left of a stage in `metrics.jsonl`."""
        if current_run() is None:
            return
        for record in directory.read_metrics():
            if record["stage"] == stage:
                self.log(record)

    def log(self, record: Mapping[str, Any]) -> None:
        """A record's metrics, under their stage's name, without those of single layers: `stage_done` has a table."""
        values = {key: value for key, value in record.items() if key.partition("/")[0] not in NOT_CHARTED}
        log_row({f"{record['stage']}/{key}": value for key, value in values.items()}, record["global_step"])

    def stage_done(self, directory: RunDirectory, stage: str, stages: Sequence[str]) -> None:
        """Log quality beside cost as `result/…`, and a table of each layer's heads, neurons and time steps."""
        if current_run() is None:
            return
        import wandb

        record, teacher = directory.record(stage), directory.record("teacher")
        end = sum(directory.record(name)["steps"] for name in stages[: stages.index(stage) + 1])
        if stage == "teacher":
            values: dict[str, Any] = {"teacher/main": record["main"], "teacher/energy_pj": record["cost"]["energy_pj"]}
        else:
            columns, rows = layer_rows(record)
            values = results(record, teacher)
            if can_store(f"the table {stage}/layers"):
                values[f"{stage}/layers"] = wandb.Table(columns=columns, data=rows)
        log_row(values, max(0, end - 1))

    def finished(self, summary: Mapping[str, Any]) -> None:
        """Write closing facts into the run's summary."""
        run = current_run()
        if run is None:
            return
        facts = {key: summary[key] for key in ("final", "uncompressed", "commit", "hardware", "main_metric")}
        run.summary.update({**facts, "data": summary["data"]["banner"]})


def sync(run_dir: str | Path) -> str:
    """Send a run directory to W&B's server, as far as it is not there; returns the run's address.

    Sent are the run's own records, so any number of offline attempts, killed ones too, are one run with each step once.
    Raises InputError where there is no run, no key or no server.
    """
    directory = RunDirectory.open(run_dir)
    server.keep_files_in(run_dir)
    if obstacle := server.why_unreachable():
        raise InputError(f"{run_dir}: cannot be sent: {obstacle}")
    config = read_resolved(directory.config)
    started = {record["stage"] for record in directory.read_metrics()}
    stages = [name for name in active_stages(config) if directory.finished(name) or name in started]
    tracker = WandbTracker("online", wait=True)
    with tracker.opened(config, directory, stages):
        for stage in (name for name in stages if not directory.finished(name)):
            tracker.stage_resumed(directory, stage)
        if directory.summary.is_file():
            tracker.finished(directory.read_summary())
        return current_run().url or current_run().id


def wandb_id(directory: RunDirectory) -> str:
    """One id for the life of a run directory, so that every attempt continues one W&B run. A sweep's agent sets it."""
    path = directory.path / "wandb_id"
    if not path.is_file():
        write_atomic(path, os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4))
    if not (name := path.read_text(encoding="utf-8", errors="replace").strip()).isprintable() or not name:
        raise InputError(f"{path}: is damaged; remove it, and the run gets a new name on W&B")
    return name


def current_run() -> Any:
    """wandb's run of this process, or None; does not import wandb."""
    return getattr(sys.modules.get("wandb"), "run", None)


def log_row(values: Mapping[str, Any], global_step: int) -> None:
    """Log finite values at a step, unless the server has that step from an earlier attempt."""
    run = current_run()
    values = {key: value for key, value in values.items() if jsonfile.nulls(value) is not None}
    if run is not None and global_step >= run.starting_step:
        run.log({**values, "global_step": global_step}, step=global_step)


def can_store(what: str) -> bool:
    """Whether a table, an artifact of its own, can be logged now. The client contacts the server for it and raises
    where that is gone; everything else waits in the run's own file."""
    if current_run().offline or server.reachable(server.address()):
        return True
    print(f"W&B: {server.address()} gave no answer in {server.TIMEOUT:g} s; {what} is left out", flush=True)
    return False
