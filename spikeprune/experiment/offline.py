"""No network for the Hugging Face libraries, which read these variables when they are imported."""

from __future__ import annotations

import os

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def forbid_network() -> None:
    """In this process, from the next import of those libraries on."""
    os.environ.update(OFFLINE)
