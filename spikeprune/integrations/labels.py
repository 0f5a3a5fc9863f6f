"""Names that other programs take: W&B's runs and sweeps, SLURM's jobs."""

from __future__ import annotations

import re
from pathlib import Path

MOST = 128  # characters


def label(name: str | Path) -> str:
    """A name of letters, digits, `-`, `_` and `.`; of a path its last part."""
    text = name.absolute().name if isinstance(name, Path) else name
    cleaned = re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-.") or "run"
    return cleaned[:MOST]
