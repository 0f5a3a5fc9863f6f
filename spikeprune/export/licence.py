"""The licence of the checkpoint that a student descends from, as the checkpoint itself states it."""

from __future__ import annotations

from pathlib import Path

import yaml
from huggingface_hub import ModelCard
from transformers.utils import cached_file

from spikeprune.export.facts import CARD, Teacher


def teacher_of(checkpoint: str | None) -> Teacher:
    """Name and licence of `teacher.checkpoint`, a directory or a hub name."""
    if checkpoint is None:
        return Teacher(None, None, False)
    folder = Path(checkpoint)
    if folder.is_dir():
        return Teacher(folder.resolve().name, licence(folder / CARD), False)
    # None where the card is neither in the cache nor to be had
    card = cached_file(
        checkpoint,
        CARD,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return Teacher(checkpoint, licence(Path(card)) if card else None, True)


def licence(card: Path) -> str | None:
    """The licence in a model card's metadata; None where there is no card, or none in it."""
    if not card.is_file():
        return None
    try:
        stated = ModelCard(card.read_text(encoding="utf-8"), ignore_metadata_errors=True).data.license
    except (ValueError, TypeError, yaml.YAMLError):  # a README that is no card
        return None
    return stated if isinstance(stated, str) else None
