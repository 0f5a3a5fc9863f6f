"""Names that other programs take: W&B's artifacts and sweeps, SLURM's jobs."""

from __future__ import annotations

import re
from pathlib import Path

MOST = 128  # characters of an artifact's name


def label(name: str | Path, suffix: str = "") -> str:
    """A name of letters, digits, `-`, `_` and `.`; of a path its last part. `suffix` survives the cut of a long one."""
    text = name.absolute().name if isinstance(name, Path) else name
    cleaned = re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-.") or "run"
    return cleaned[: MOST - len(suffix)] + suffix
