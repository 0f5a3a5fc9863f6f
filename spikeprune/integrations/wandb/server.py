"""W&B's server: whether it can be reached, found out before anything is computed, and sweeps on it."""

from __future__ import annotations

import netrc
import os
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from spikeprune.config.schema import Config
from spikeprune.errors import InputError

TIMEOUT = 5.0  # seconds that a server has to respond before the run continues offline


def chosen_mode(config: Config) -> str:
    """`off`, `online` or `offline`. Raises InputError where `run.wandb=online` cannot be, or as `address`.

    `auto` follows WANDB_MODE where that is set; else it is online with a key and a server that responds.
    """
    wanted, environment = config.run.wandb, os.environ.get("WANDB_MODE", "")
    if wanted == "off" or (wanted == "auto" and environment == "disabled"):
        return "off"
    keep_files_in(config.run.dir)
    address()  # an offline run needs the client's settings too
    if wanted == "offline" or (wanted == "auto" and environment in ("offline", "dryrun")):
        return "offline"
    obstacle = why_unreachable()
    if not obstacle:
        return "online"
    if wanted == "online":
        raise InputError(f"run.wandb = online: {obstacle}, or use run.wandb=offline")
    print(f"W&B: offline, since {obstacle.partition(';')[0]}; `spikeprune sync {config.run.dir}` sends it", flush=True)
    return "offline"


def keep_files_in(run_dir: str | Path) -> None:
    """Let wandb keep unsent files in the run directory, not in a home directory that another machine may not have."""
    os.environ.setdefault("WANDB_DATA_DIR", str(Path(run_dir).absolute() / "wandb" / "data"))


def why_unreachable() -> str:
    """What keeps this machine from W&B's server and, after a semicolon, the remedy; empty where nothing does."""
    url = address()
    if not _key(url):
        return f"there is no key for {url}; set WANDB_API_KEY or run `wandb login`"
    if not reachable(url):
        return f"{url} gave no answer in {TIMEOUT:g} s; try from a machine that reaches it"
    return ""


def address() -> str:
    """The URL of the W&B server that this machine is set to. Raises InputError where the client refuses a WANDB_…."""
    import wandb

    try:
        return wandb.setup().settings.base_url
    except ValueError as error:  # of several lines: how many are wrong, a setting, what is wrong with it, …
        wrong = " ".join(line.strip() for line in str(error).splitlines()[1:3])
        raise InputError(f"W&B's settings, WANDB_… in the environment: {wrong}; mend it") from None


def _key(url: str) -> str | None:
    """The key where the client looks for it; the client's own look-up would contact the server too."""
    if os.environ.get("WANDB_API_KEY"):
        return os.environ["WANDB_API_KEY"]
    try:
        entry = netrc.netrc(os.environ.get("NETRC")).authenticators(urlsplit(url).netloc)
    except (OSError, netrc.NetrcParseError):
        return None
    return entry[2] if entry else None


def reachable(url: str) -> bool:
    """Whether the server responds at all. In a thread: a name server may be silent for longer than any timeout."""
    responded = threading.Event()

    def request() -> None:
        try:
            urllib.request.urlopen(url, timeout=TIMEOUT).close()
        except urllib.error.HTTPError:
            pass  # an error is a response too
        except (OSError, ValueError):
            return
        responded.set()

    threading.Thread(target=request, daemon=True).start()
    return responded.wait(TIMEOUT)


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
