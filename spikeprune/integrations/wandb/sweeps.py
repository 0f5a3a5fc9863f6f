"""Sweeps of W&B's server."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from spikeprune.errors import InputError
from spikeprune.integrations.wandb.online import server, unready


def create_sweep(tree: Mapping[str, Any], project: str) -> str:
    """Make a sweep on the server; returns project/id, which agents take. Raises InputError where it cannot be."""
    lacking = unready()
    if lacking:
        raise InputError(f"a sweep on W&B's server cannot be: {lacking}; --local runs the same file without a server")
    import wandb

    try:
        sweep = wandb.sweep(dict(tree), entity=tree.get("entity"), project=project)
    except wandb.errors.Error as error:
        raise InputError(f"W&B ({server()}) refused the sweep: {str(error).splitlines()[0]}") from None
    return "/".join(part for part in (tree.get("entity"), project, sweep) if part)


def agent_command(sweep: str, count: int | None = None) -> list[str]:
    """Of an agent that hands signals on to its trial; without it a trial outlives its agent."""
    run = [sys.executable, "-m", "wandb", "agent", "--forward-signals"]
    return [*run, *(["--count", str(count)] if count else []), sweep]
