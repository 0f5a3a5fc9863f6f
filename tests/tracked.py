"""Runs that W&B follows, in processes of their own with the real client, and what it should hold; not a test."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import lightning as L
import pytest
from children import add_callback, begin
from micro import GLUE, micro, only
from wandb_server import Board

from spikeprune.experiment.run_directory import RunDirectory
from spikeprune.integrations.wandb import tracker
from spikeprune.report.results import results

KEY = "0" * 40
STAGES = ("teacher", "internal_kd", "spatial")
SHORT = (
    *only("teacher", "internal_kd", "spatial"),
    "stages.temporal.t_steps=null",
    "stages.spatial.epochs=2",
    "run.wandb=auto",
    "run.checkpoint_every=3",
)


class AtStep(L.Callback):
    """Stops at a step until this process is killed."""

    def __init__(self, step: int):
        self.step = step

    def on_train_batch_end(self, trainer, *_) -> None:
        if trainer.global_step == self.step:
            Path(os.environ["AT_STEP"]).touch()
            time.sleep(300)


def prepare(kill: tuple[str, int] | None, finish: int) -> None:
    tracker.FINISH_TIMEOUT = finish
    if kill:
        add_callback(kill[0], AtStep(kill[1]))


def launch(words: list[str], log: Path, environment=None, kill=None, finish: int = tracker.FINISH_TIMEOUT):
    """A process that runs `spikeprune`; `finish`: seconds that it waits for a lost server at its end."""
    quiet = {"WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true", "WANDB_API_KEY": ""}
    mark = {"AT_STEP": str(log.with_name("at_step"))}
    return begin(words, log, {**quiet, **(environment or {}), **mark}, prepare, (kill, finish))


def start(words: list[str], log: Path, environment=None, kill=None, when=lambda: True) -> int:
    """One attempt; `kill` names the stage and step at which it is killed, as soon as `when` holds as well."""
    log.with_name("at_step").unlink(missing_ok=True)
    child = launch(words, log, environment, kill)
    until = time.monotonic() + 180
    while kill and child.is_alive() and time.monotonic() < until:
        if log.with_name("at_step").is_file() and when():
            child.kill()
            break
        time.sleep(0.1)
    child.join(180)
    return child.exitcode


def online(board: Board) -> dict[str, str]:
    """Of a client that sends what it has at once; its own pace is 15 s."""
    return {"WANDB_BASE_URL": board.url, "WANDB_API_KEY": KEY, "WANDB__FILE_STREAM_TRANSMIT_INTERVAL": "0.1"}


def train(folder: Path, glue: Path, *more: str) -> list[str]:
    return ["train", str(GLUE), *micro(folder, glue), *SHORT, *more]


def rows(run: RunDirectory) -> dict[int, dict[str, float]]:
    """What W&B should hold of `metrics.jsonl`: a row for each global step, keys under their stage, none of a layer."""
    found: dict[int, dict[str, float]] = {}
    for record in run.read_metrics():
        row = found.setdefault(record["global_step"], {})
        kept = {key: value for key, value in record.items() if key.partition("/")[0] not in tracker.NOT_CHARTED}
        row |= {f"{record['stage']}/{key}": value for key, value in kept.items()}
    return found


def check_history(history: list[dict], run: RunDirectory, stages: Sequence[str] = STAGES) -> None:
    """Each step once, in order, with every value that the run logged, and the results in each stage's last row."""
    wanted = rows(run)
    assert [row["_step"] for row in history] == [row["global_step"] for row in history] == sorted(wanted)
    for row in history:
        mine = wanted[row["_step"]]
        assert {key: row[key] for key in mine} == pytest.approx(mine)
    ends = {name: sum(run.record(s)["steps"] for s in stages[: i + 1]) - 1 for i, name in enumerate(stages)}
    for name in stages[1:]:
        row = history[ends[name]]
        found = results(run.record(name), run.record("teacher"))
        assert {key: row[key] for key in found} == pytest.approx(found)
    assert history[ends["teacher"]]["teacher/main"] == run.record("teacher")["main"]
