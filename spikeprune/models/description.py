"""`student.json`: everything that makes a student of the weights beside it, and what its classes are called."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import Any

from spikeprune.errors import InputError
from spikeprune.files import jsonfile
from spikeprune.models.checkpoint_facts import label_names
from spikeprune.models.modeling import SpikingBert

FILE = "student.json"
KNOWN = {*signature(SpikingBert).parameters, "id2label", "label2id"}


def description(student: SpikingBert) -> dict[str, Any]:
    """The student as it is, whatever configuration it was made under: its values and time steps, and with `labels`
    transformers' `id2label` and `label2id`."""
    values = {**student.values, "t_steps": student.steps}
    labels = values.pop("labels")
    return values if labels is None else {**values, **label_names(labels)}


def read_description(folder: str | Path) -> dict[str, Any]:
    """The values that rebuild the student in `folder`; an older one has no labels. Raises InputError for a file that
    is missing, damaged, or of a version with other values."""
    path = Path(folder) / FILE
    values = jsonfile.read(path, f"remove {folder} to make it again", ("weights",))
    if strange := set(values) - KNOWN:
        what = f"holds {', '.join(sorted(strange))}"
        raise InputError(f"{path}: {what}, which is none of a student's values; remove {folder} to make it again")
    names = values.pop("id2label", None)
    values.pop("label2id", None)
    if names is not None:
        values["labels"] = [names[str(i)] for i in range(len(names))]
    return values
