"""Keys of services, which programs read from the environment: they are shown nowhere and written into no file."""

from __future__ import annotations

import os
import re

NAMES = ("WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN")
SHORTEST = 8  # characters; what is shorter may be part of any word
SIGNED = re.compile(r"(?<=://)[^/@\s]+@")  # name and password in a URL


def held(text: str) -> str:
    """The environment's variable whose secret is part of the text; empty for none."""
    return next((name for name in NAMES if (key := _key(name)) and key in text), "")


def redacted(text: str) -> str:
    """The text with *** for each secret of the environment and for the name and password in a URL."""
    for name in NAMES:
        if key := _key(name):
            text = text.replace(key, "***")
    return SIGNED.sub("***@", text)


def _key(name: str) -> str:
    key = os.environ.get(name, "").strip()
    return key if len(key) >= SHORTEST else ""
