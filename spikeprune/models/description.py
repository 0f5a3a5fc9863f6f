"""`student.json`: everything that makes a student of the weights beside it, and what its classes are called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spikeprune.models.checkpoint import label_names
from spikeprune.models.student import Student

FILE = "student.json"


def description(student: Student) -> dict[str, Any]:
    """The student as it is, whatever configuration it was made under: its values and time steps, and with `labels`
    transformers' `id2label` and `label2id`."""
    values = {**student.values, "t_steps": student.steps}
    labels = values.pop("labels")
    return values if labels is None else {**values, **label_names(labels)}


def read_description(folder: str | Path) -> dict[str, Any]:
    """The values that rebuild the student in `folder`; an older one has no labels."""
    values = json.loads((Path(folder) / FILE).read_text())
    names = values.pop("id2label", None)
    values.pop("label2id", None)
    if names is not None:
        values["labels"] = [names[str(i)] for i in range(len(names))]
    return values
