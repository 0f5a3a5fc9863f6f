"""Online or offline: whether a run can reach W&B's server, found before anything is computed."""

from __future__ import annotations

import netrc
import os
import threading
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from spikeprune.config.schema import Config
from spikeprune.errors import InputError

LOOK = 5.0  # seconds that a server has to answer before the run goes on offline


def chosen_mode(config: Config) -> str:
    """`off`, `online` or `offline`. Raises InputError where `run.wandb=online` cannot be.

    `auto` follows WANDB_MODE where that is set; else it is online with a key and a server that answers at once.
    """
    wanted, said = config.run.wandb, os.environ.get("WANDB_MODE", "")
    if wanted == "off" or (wanted == "auto" and said == "disabled"):
        return "off"
    keep_files_in(config.run.dir)
    if wanted == "offline" or (wanted == "auto" and said in ("offline", "dryrun")):
        return "offline"
    lacking = unready()
    if not lacking:
        return "online"
    if wanted == "online":
        raise InputError(f"run.wandb = online: {lacking}, or use run.wandb=offline")
    print(f"W&B: offline, since {lacking.partition(';')[0]}; `spikeprune sync {config.run.dir}` sends it", flush=True)
    return "offline"


def keep_files_in(run_dir: str | Path) -> None:
    """What waits to be sent belongs to the run, not to a home that another machine may not have."""
    os.environ.setdefault("WANDB_DATA_DIR", str(Path(run_dir).absolute() / "wandb" / "data"))


def unready() -> str:
    """What keeps this machine from W&B's server, and after a semicolon what to do; empty where nothing does."""
    url = server()
    if not _key(url):
        return f"there is no key for {url}; set WANDB_API_KEY or run `wandb login`"
    if not answers(url):
        return f"{url} gave no answer in {LOOK:g} s; try from a machine that reaches it"
    return ""


def server() -> str:
    """The address of W&B's server that this machine is set to."""
    import wandb

    return wandb.setup().settings.base_url


def _key(url: str) -> str | None:
    """The key where the client looks for it; asking the client itself would ask the server too."""
    if os.environ.get("WANDB_API_KEY"):
        return os.environ["WANDB_API_KEY"]
    try:
        entry = netrc.netrc(os.environ.get("NETRC")).authenticators(urlsplit(url).netloc)
    except (OSError, netrc.NetrcParseError):
        return None
    return entry[2] if entry else None


def answers(url: str) -> bool:
    """Whether anything at all comes back; in a thread, for a name server may be silent for longer than any timeout."""
    heard = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(url, timeout=LOOK).close()
        except urllib.error.HTTPError:
            pass  # an answer too
        except (OSError, ValueError):
            return
        heard.set()

    threading.Thread(target=ask, daemon=True).start()
    return heard.wait(LOOK)
