"""The checkpoint from which an interrupted stage resumes, checked before Lightning restores it."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path
from pickletools import genops
from typing import Any

import torch

from spikeprune.errors import InputError, out_of_memory
from spikeprune.models.tensors import misfit, not_finite
from spikeprune.training.modules.task import TaskModule

AGAIN = "remove it, and the stage begins again"
CLASSES = ("GLOBAL", "INST")  # operations of a pickle that name one
LONGEST_NAME = 500


def resume_step(checkpoint: Path, module: TaskModule) -> int:
    """Optimizer steps made when the checkpoint was written. Raises InputError for a damaged file, for one of another
    network than the module's, and for weights that are not finite."""
    saved = read_checkpoint(checkpoint, AGAIN)
    own = module.state_dict()
    own = {name: tensor for name, tensor in own.items() if name in saved["state_dict"] or not frozen(name, module)}
    if wrong := misfit(own, saved["state_dict"]):
        raise InputError(f"{checkpoint}: is of another network ({wrong}); {AGAIN}")
    if wrong := not_finite(saved["state_dict"]):
        raise InputError(f"{checkpoint}: {wrong[0]} is not finite; {AGAIN}")
    return saved["global_step"]


def frozen(name: str, module: TaskModule) -> bool:
    """Whether a tensor is the frozen teacher's, which a student's checkpoint leaves out."""
    return name.startswith("teacher.") and hasattr(module, "student")


def read_checkpoint(path: Path, remedy: str) -> dict[str, Any]:
    """A checkpoint of Lightning's. Raises InputError for a damaged file, another kind of file and low memory."""
    if not whole(path):
        raise InputError(f"{path}: is damaged; {remedy}")
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever it stumbles over
        if out_of_memory(error):
            raise InputError(f"{path}: there is not enough memory to load it; free some, and start again") from None
        saved = None
    if not isinstance(saved, dict) or not is_step(saved.get("global_step")) or not is_state(saved.get("state_dict")):
        raise InputError(f"{path}: is no checkpoint of a stage; {remedy}")
    return saved


def is_step(value: Any) -> bool:
    return isinstance(value, int) and value >= 0


def is_state(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(tensor, torch.Tensor) for tensor in value.values())


def whole(path: Path) -> bool:
    """Whether all parts of a file of torch.save, a zip archive, have the checksums that they were written with; torch
    itself loads a part that has changed. A class with an endless name, over which torch would take minutes, is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                return False
            pickled = b"".join(archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
        return all(len(str(name)) < LONGEST_NAME for op, name, _ in genops(pickled) if op.name in CLASSES)
    except (zipfile.BadZipFile, RuntimeError, EOFError, ValueError, OSError, zlib.error, struct.error):
        return False
