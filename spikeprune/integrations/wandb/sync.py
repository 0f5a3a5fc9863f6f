"""A finished or interrupted run directory, sent to W&B's server afterwards."""

from __future__ import annotations

from pathlib import Path

from spikeprune.config.derived import active_stages
from spikeprune.config.load import read_resolved
from spikeprune.errors import InputError
from spikeprune.experiment.run_directory import RunDirectory
from spikeprune.integrations.wandb.server import keep_files_in, why_unreachable
from spikeprune.integrations.wandb.tracker import WandbTracker, current_run


def sync(run_dir: str | Path) -> str:
    """Send a run directory to W&B's server, as far as it is not there; returns the run's address.

    Sent are the run's own records, so any number of offline attempts, killed ones too, are one run with each step once.
    Raises InputError where there is no run, no key or no server.
    """
    directory = RunDirectory.open(run_dir)
    keep_files_in(run_dir)
    if obstacle := why_unreachable():
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
