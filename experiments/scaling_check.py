"""Short runs on one device and on several, these also killed and resumed; part of `bench_ddp.py`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from spikeprune.config.derived import active_stages
from spikeprune.config.load import load
from spikeprune.errors import InputError
from spikeprune.experiment.run_directory import RunDirectory

GLUE = Path(__file__).resolve().parent / "glue.yaml"
SHORT = ("task=sst2", "preset=tiny", "data.source=embedded")  # minutes, without files
EVERY = 20  # optimizer steps between two checkpoints of a run that will be killed
SET_HERE = ("run.dir", "run.devices", "run.accelerator", "run.checkpoint_every")


def check(devices: Sequence[int], accelerator: str, overrides: Sequence[str], work: Path) -> Iterator[dict[str, Any]]:
    """The row of each run as it ends: undisturbed on each number of devices, and killed on several. Batches are of all
    devices together."""
    for item in overrides:
        if item.partition("=")[0] in SET_HERE:
            raise InputError(f"{item}: the check sets this itself")
    overrides = [*(overrides or SHORT), f"run.accelerator={accelerator}"]
    stages = active_stages(load(GLUE, overrides))
    keys = [item.partition("=")[0] for item in overrides]
    overrides += [f"{key}=0" for key in (f"stages.{stage}.steps" for stage in stages) if key not in keys]
    runs = [(n, killed) for n in devices for killed in ((None, stages[len(stages) // 2]) if n > 1 else (None,))]
    for number, (count, killed) in enumerate(runs, 1):
        print(f"run {number} of {len(runs)}: {title({'devices': count, 'killed': killed})}", flush=True)
        yield trained(RunDirectory(work / str(number)), count, killed, overrides)


def title(run: Mapping[str, Any]) -> str:
    killed = f", killed in {run['killed']}" if run["killed"] else ""
    return f"{run['devices']} device{'s' * (run['devices'] > 1)}{killed}"


def trained(run: RunDirectory, count: int, killed: str | None, overrides: Sequence[str]) -> dict[str, Any]:
    """One run; `killed`: the stage in which all of its processes are killed, after its first checkpoint."""
    command = [sys.executable, "-m", "spikeprune", "train", str(GLUE), *overrides]
    command += [f"run.dir={run.path}", f"run.devices={count}"]
    begin = time.time()
    if killed:
        kill([*command, f"run.checkpoint_every={EVERY}"], run, killed)
    done = subprocess.run(command, stdout=subprocess.DEVNULL)
    if done.returncode:
        sys.exit(done.returncode)  # its message is printed
    if killed and "resumed from step" not in run.log.read_text(encoding="utf-8"):
        raise RuntimeError(f"{run.path}: the killed run has begun {killed} again")
    return row_of(run.read_summary(), count, killed) | {"seconds": time.time() - begin}


def kill(command: Sequence[str], run: RunDirectory, stage: str) -> None:
    """Start a run, and kill it when this stage has a checkpoint. Raises InputError where it ends before."""
    started = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        while not run.resume(stage).is_file():
            if started.poll() is not None or run.finished(stage):
                raise InputError(f"{stage} has ended before a checkpoint, which comes every {EVERY} steps: lengthen it")
            time.sleep(0.02)
    finally:
        if started.poll() is None:
            os.killpg(started.pid, signal.SIGKILL)
        started.wait()


def row_of(summary: dict[str, Any], count: int, killed: str | None) -> dict[str, Any]:
    final, metric = summary["stages"][summary["final"]], summary["main_metric"].split("+")[0]
    steps = {"teacher": summary["teacher"]["steps"]} | {name: row["steps"] for name, row in summary["stages"].items()}
    kept = {key: final[key] for key in ("heads", "ffn", "t_steps", "main")}
    scores = {"metric": metric, "score": final["metrics"][metric], "interval": final["intervals"][metric]}
    made = {key: summary[key] for key in ("task", "preset")} | {"data": summary["data"]["source"]}
    return {"devices": count, "killed": killed, **made, **scores, **kept, "steps": steps, "ac": final["cost"]["ac"]}
