"""Sweeps on W&B's server."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from spikeprune.errors import InputError
from spikeprune.integrations.wandb.server import address, why_unreachable


def create_sweep(tree: Mapping[str, Any], project: str) -> str:
    """Create a sweep on the server; returns `project/id` for agents. Raises InputError where that is impossible."""
    if obstacle := why_unreachable():
        raise InputError(
            f"a sweep on W&B's server cannot be created: {obstacle}; --local runs the same file without a server"
        )
    import wandb

    try:
        sweep = wandb.sweep(dict(tree), entity=tree.get("entity"), project=project)
    except wandb.errors.Error as error:
        raise InputError(f"W&B ({address()}) refused the sweep: {str(error).splitlines()[0]}") from None
    return "/".join(part for part in (tree.get("entity"), project, sweep) if part)


def agent_command(sweep: str) -> list[str]:
    """The command of an agent that forwards signals to its trial; otherwise a trial would outlive its agent."""
    return [sys.executable, "-m", "wandb", "agent", "--forward-signals", sweep]
