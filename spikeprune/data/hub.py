"""Asks once, quickly, whether the hub answers; the libraries themselves retry for up to 48 s without a network."""

from __future__ import annotations

import contextlib
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from spikeprune.errors import InputError, in_a_line

SECONDS = 5.0


class HubUnavailable(InputError):
    """A dataset cannot be had now: no network and no cache, or no dataset of that name."""


def reachable(*, seconds: float = SECONDS) -> bool:
    """Whether the hub's server (`HF_ENDPOINT` if set) answers within `seconds`, proxies respected.

    False at once under HF_HUB_OFFLINE. Any HTTP answer counts, and so does a certificate that only Python's own store
    does not know: what the libraries make of those is theirs to report.
    """
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return False
    answer: list[bool] = []
    # A thread, because a name server that does not answer blocks for longer than any socket timeout.
    thread = threading.Thread(target=lambda: answer.append(_answers(constants.ENDPOINT, seconds)), daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(answer and answer[0])


def _answers(url: str, seconds: float) -> bool:
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds).close()
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def datasets_offline() -> Iterator[None]:
    """Inside, `datasets` reads its cache only."""
    from datasets import config

    before = config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before


def load_splits(name: str, config: str | None, *, instead: str):
    """The `DatasetDict` of a hub dataset or a local dataset directory: from the network if the hub answers, else from
    the cache, else `HubUnavailable`. Other faults are a plain `InputError`. `instead`: what the user could do."""
    import datasets
    from datasets.exceptions import DatasetNotFoundError, DatasetsError

    what = f"dataset {name!r}" + (f" ({config})" if config else "")
    here = Path(name).is_dir()
    online = here or reachable()
    absent = () if here else (DatasetNotFoundError, ConnectionError, FileNotFoundError)
    if not online:
        absent += (ValueError,)  # cached, but not this config
    try:
        with contextlib.nullcontext() if online else datasets_offline():
            return datasets.load_dataset(name, config)
    except absent as error:
        raise HubUnavailable(
            f"{what} was found neither on the hub nor in its cache ({in_a_line(error)}); {instead}"
        ) from error
    except (ValueError, OSError, DatasetsError) as error:
        raise InputError(f"{what} cannot be read: {in_a_line(error)}; {instead}") from error
