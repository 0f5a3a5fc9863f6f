"""A run directory sent to W&B's server afterwards."""

from __future__ import annotations

from pathlib import Path

from spikeprune.config.derived import active_stages
from spikeprune.config.load import read_resolved
from spikeprune.errors import InputError
from spikeprune.experiment.run_directory import RunDirectory
from spikeprune.integrations.wandb.live import finished, open_run, replay, tracked
from spikeprune.integrations.wandb.online import keep_files_in, unready


def sync(run_dir: str | Path) -> str:
    """Send a run directory to W&B's server, as far as it is not there; returns the run's address.

    From the run's own records, so that any number of offline legs, killed ones too, are one run with each step once.
    Raises InputError where there is no run, no key or no server.
    """
    run = RunDirectory.open(run_dir)
    keep_files_in(run_dir)
    lacking = unready()
    if lacking:
        raise InputError(f"{run_dir}: cannot be sent: {lacking}")
    config = read_resolved(run.config)
    begun = {record["stage"] for record in run.read_metrics()}
    stages = [name for name in active_stages(config) if run.finished(name) or name in begun]
    with tracked(config, run, "online", stages, patient=True):
        for stage in (name for name in stages if not run.finished(name)):
            replay(run, stage)
        if run.summary.is_file():
            finished(config, run, run.read_summary())
        return open_run().url or open_run().id
