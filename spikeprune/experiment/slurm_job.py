"""SLURM's commands and environment variables. Its own error messages are passed on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping

from spikeprune.errors import InputError

ALIVE = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "CONFIGURING", "STAGE_OUT", "SIGNALING", "RESIZING")


def own_job() -> tuple[str, int] | None:
    """(job, how often it was requeued) of the job that this process runs in; a task of an array is `<array>_<task>`.

    Not SLURM_JOB_ID of an array's task: the last task's is the id of the whole array, so a requeue would act on all.
    """
    job, array = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_ARRAY_JOB_ID")
    if array:
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return (job, int(os.environ.get("SLURM_RESTART_COUNT", 0))) if job else None


def is_first_process() -> bool:
    """Whether this is rank 0 of its run, without torch. SLURM, torchrun, Lightning's launcher and a launch by hand each
    number processes in variables of their own; all are zero or absent in rank 0."""
    names = ("SLURM_PROCID", "RANK", "NODE_RANK", "LOCAL_RANK")
    return not any(int(os.environ.get(name) or 0) for name in names)


def _run(*command: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Raises InputError where the command is not on PATH."""
    if shutil.which(command[0]) is None:
        raise InputError(f"{command[0]} is not on PATH; SLURM's commands are found on a cluster's login node")
    return subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", env=environment)


def sbatch(*words: str, environment: Mapping[str, str] | None = None) -> str:
    """Call sbatch with options, a script and its arguments; returns its output: the job id with `--parsable`. Raises
    InputError with SLURM's own message."""
    done = _run("sbatch", *words, environment=environment)
    if done.returncode:
        raise InputError(f"sbatch refuses the job: {_message(done.stderr)}")
    return (done.stdout or done.stderr).strip()


def _message(text: str) -> str:
    lines = [line.removeprefix("sbatch: ").removeprefix("error: ") for line in text.strip().splitlines()]
    return "; ".join(line for line in lines if line) or "it gives no reason"


def alive(job: str, restarts: int) -> bool | None:
    """Whether that attempt of a job still has its nodes; None where SLURM is not reachable."""
    if shutil.which("squeue") is None:
        return None
    done = _run("squeue", "--noheader", "--jobs", job, "--Format", "State:20,RestartCnt:10")
    if done.returncode:
        return False if "Invalid job id" in done.stderr else None
    rows = [line.split() for line in done.stdout.splitlines() if line.strip()]
    return any(state in ALIVE and int(count) == restarts for state, count in rows)


def requeue(job: str) -> str:
    """Requeue the job, which ends this process at once. Returns SLURM's reason where it refuses, else ''."""
    try:
        done = _run("scontrol", "requeue", job)
    except InputError as error:
        return str(error)
    return done.stderr.strip() if done.returncode else ""


def read_time(text: str) -> int | None:
    """Seconds of a time limit: minutes, minutes:seconds, hours:minutes:seconds, or hours[:minutes[:seconds]] after
    days-; None for what only SLURM can judge."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if not found:
        return None
    days, *parts = (int(part or 0) for part in found.groups())
    if found[1] is None and found[4] is None:
        parts = [0, *parts[:2]]
    return 86400 * days + sum(part * unit for part, unit in zip(parts, (3600, 60, 1), strict=True))
