"""A sweep on W&B's server: its trials are run by W&B's own agents, one per GPU or one per job of a cluster."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

from spikeprune.config.resources import shipped
from spikeprune.errors import InputError
from spikeprune.experiment import slurm_job
from spikeprune.integrations.labels import label
from spikeprune.integrations.sweeps.machine import gpus
from spikeprune.integrations.sweeps.spec import Sweep
from spikeprune.integrations.wandb.server import agent_command, create_sweep

JOB = "sweep.sh"


def run_online(sweep: Sweep, trials: int | None, agents: int | None) -> int:
    """Make the sweep and run agents until it is done, `trials` in all; returns the worst exit code."""
    devices = gpus()
    count = len(devices) or 1 if agents is None else agents
    name = start(sweep, trials)
    if count < 1:
        print(f"agents: {shlex.join(agent_command(name))}")
        return 0
    started = []
    for i in range(count):
        environment = agent_environment()
        if devices:
            environment["CUDA_VISIBLE_DEVICES"] = devices[i % len(devices)]
        started.append(subprocess.Popen(agent_command(name), env=environment))
    try:
        return max(agent.wait() for agent in started)
    except BaseException:
        for agent in started:
            agent.terminate()  # it ends its trial, which the server assigns again
        for agent in started:
            agent.wait()
        raise


def job_script() -> Path:
    """The batch script of an agent: the working directory's own, or the package's."""
    own = Path("experiments/slurm") / JOB
    return own if own.is_file() else shipped() / "slurm" / JOB


def run_on_slurm(sweep: Sweep, trials: int | None, options: str) -> int:
    """Make the sweep and submit an array job, a trial a task. Raises InputError where sbatch is missing or refuses."""
    number = trials or sweep.run_cap or sweep.size
    if number is None:
        raise InputError(f"{sweep.path}: a {sweep.method} sweep has no end; give --trials N or run_cap in the file")
    try:
        given = shlex.split(options)
    except ValueError as error:
        raise InputError(f"--slurm={options}: {error}; write options as in a shell") from None
    command = [*given, f"--array=1-{number}", str(job_script())]
    slurm_job.sbatch("--test-only", *command, "NAME")
    name = start(sweep, trials)
    print(shlex.join(["sbatch", *command, name]), flush=True)
    print(slurm_job.sbatch(*command, name, environment=agent_environment()), flush=True)
    return 0


def start(sweep: Sweep, trials: int | None) -> str:
    """The sweep on the server, its size limited to `trials`; its name as agents take it."""
    tree = {**sweep.tree, **({"run_cap": trials} if trials else {})}
    project = tree.get("project") or os.environ.get("WANDB_PROJECT") or "spikeprune"
    name = create_sweep({"name": label(sweep.path.stem), **tree}, project)
    print(f"sweep: {name}", flush=True)
    return name


def agent_environment() -> dict[str, str]:
    """With this interpreter first on PATH, from which agents start trials, and without this process' W&B service."""
    folders = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    mine = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}
    return {**mine, "PATH": os.pathsep.join(folders)}
