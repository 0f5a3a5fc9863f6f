"""A W&B run while its stages run: opened once, a group of charts for each stage, results at each stage's end.

Every value goes into the row of its true step, counted over all stages, and each leg of a run first logs again what
`metrics.jsonl` and the stages' records hold of the earlier ones. Rows that the server has are left out. So an online
run is whole though a leg before it was offline or was killed, the newest offline leg holds all of the run, and
`sync.py` needs the run directory alone.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from spikeprune.config.schema import Config
from spikeprune.errors import InputError
from spikeprune.experiment.run_directory import WEIGHTS, RunDirectory, write_atomic
from spikeprune.files import jsonfile
from spikeprune.integrations.labels import label
from spikeprune.integrations.wandb import online
from spikeprune.report.results import layer_rows, results
from spikeprune.training import distributed

INIT, FINISH = 30, 30  # seconds for a run's first and last words; wandb's own are 90 and no end


def wandb_id(run: RunDirectory) -> str:
    """One id for the life of a run directory: every leg continues one W&B run. A sweep's agent has chosen it."""
    path = run.path / "wandb_id"
    if not path.is_file():
        write_atomic(path, os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4))
    if not (name := path.read_text(encoding="utf-8", errors="replace").strip()).isprintable() or not name:
        raise InputError(f"{path}: is damaged; remove it, and the run gets a new name on W&B")
    return name


@contextmanager
def tracked(config: Config, run: RunDirectory, mode: str, stages: list[str], patient: bool = False) -> Iterator[None]:
    """The W&B run of this directory, open; none where `mode` is `off`. Raises InputError where the server refuses it.

    `patient` waits at the end until all is sent; else a lost server costs FINISH seconds and `sync` sends the rest.

    Of several processes rank 0 has it. wandb keeps the run of a process itself (`wandb.run`), and the functions below
    ask it there; elsewhere they do nothing.
    """
    if mode == "off":
        yield
        return
    distributed.first(lambda: _open(config, run, mode, stages, patient))
    try:
        yield
    except BaseException as error:
        opened = open_run()
        if opened is not None and not isinstance(error, Exception):
            opened.mark_preempting()  # interrupted: a sweep may give the trial out again, and it goes on
        if opened is not None:
            opened.finish(exit_code=1)
        raise
    if open_run() is not None:
        open_run().finish()


def _open(config: Config, run: RunDirectory, mode: str, stages: list[str], patient: bool) -> None:
    import wandb

    try:
        opened = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "spikeprune",
            id=wandb_id(run),
            name=label(run.path),
            resume="allow",
            dir=run.path,
            config=asdict(config),
            mode=mode,
            settings=wandb.Settings(init_timeout=INIT, finish_timeout=0 if patient else FINISH),
        )
    except wandb.errors.Error as error:
        reason, otherwise = str(error).splitlines()[0], "mend the key, or use run.wandb=offline"
        raise InputError(f"W&B ({online.server()}) refused the run: {reason}; {otherwise}") from None
    opened.define_metric("global_step", hidden=True)
    for group in (*stages, "result"):
        opened.define_metric(f"{group}/*", step_metric="global_step")
    for stage in (name for name in stages if run.finished(name)):
        replay(run, stage)
        stage_done(run, stage, stages)


def open_run() -> Any:
    """wandb's run of this process, or None; without loading wandb where nobody did."""
    return getattr(sys.modules.get("wandb"), "run", None)


def log(values: Mapping[str, Any], global_step: int) -> None:
    """Into the row of that step, unless the server has it from an earlier leg. A number that is none is left out."""
    run = open_run()
    values = {key: value for key, value in values.items() if jsonfile.nulls(value) is not None}
    if run is not None and global_step >= run.starting_step:
        run.log({**values, "global_step": global_step}, step=global_step)


def log_record(record: Mapping[str, Any]) -> None:
    """A line of `metrics.jsonl`: its metrics under their stage's name."""
    values = {key: value for key, value in record.items() if key not in ("stage", "step", "global_step")}
    log({f"{record['stage']}/{key}": value for key, value in values.items()}, record["global_step"])


def replay(run: RunDirectory, stage: str) -> None:
    """Log again what earlier legs have left of a stage in `metrics.jsonl`."""
    if open_run() is None:
        return
    for record in (r for r in run.read_metrics() if r["stage"] == stage):
        log_record(record)


def stage_done(run: RunDirectory, stage: str, stages: list[str]) -> None:
    """Log what a finished stage measured: quality beside cost as `result/…`, and each layer's heads, neurons, steps."""
    if open_run() is None:
        return
    import wandb

    record, teacher = run.record(stage), run.record("teacher")
    end = sum(run.record(name)["steps"] for name in stages[: stages.index(stage) + 1])
    if stage == "teacher":
        values: dict[str, Any] = {"teacher/main": record["main"], "teacher/energy_pj": record["cost"]["energy_pj"]}
    else:
        columns, rows = layer_rows(record)
        values = results(record, teacher)
        if _can_store(f"the table {stage}/layers"):
            values[f"{stage}/layers"] = wandb.Table(columns=columns, data=rows)
    log(values, max(0, end - 1))


def _can_store(what: str) -> bool:
    """Whether an artifact can be logged now: the client asks the server about it first, and raises where that is gone;
    all else waits in the run's own file."""
    if open_run().offline or online.answers(online.server()):
        return True
    print(f"W&B: {online.server()} gave no answer in {online.LOOK:g} s; {what} is left out", flush=True)
    return False


def finished(config: Config, run: RunDirectory, summary: Mapping[str, Any]) -> None:
    """Mark what the run ended with, and where asked for store the compressed student."""
    opened = open_run()
    if opened is None:
        return
    import wandb

    facts = {key: summary[key] for key in ("final", "uncompressed", "commit", "hardware", "main_metric")}
    opened.summary.update({**facts, "data": summary["data"]["banner"]})
    if config.run.wandb_artifact and summary["final"] and _can_store("the student's artifact"):
        folder = run.stage(summary["final"])
        kept = {key: summary["stages"][summary["final"]][key] for key in ("heads", "ffn", "t_steps")}
        facts = {"stage": summary["final"], "task": summary["task"], **kept}
        artifact = wandb.Artifact(label(run.path, "-student"), "model", metadata=facts)
        for path in (folder / WEIGHTS, folder / "config.json", run.config, run.summary):
            artifact.add_file(str(path), policy="immutable", skip_cache=True)
        opened.log_artifact(artifact)
