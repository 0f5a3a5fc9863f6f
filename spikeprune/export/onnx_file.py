"""`onnx`: one file for onnxruntime that computes a student's closed form, checked on the dev split.

The file is made by `runtime/onnx_graph.py`, and compared with the student (`onnx_check.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spikeprune.export.facts import Facts
from spikeprune.export.onnx_check import compared
from spikeprune.files import jsonfile
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.outputs import INPUTS
from spikeprune.runtime.onnx_graph import COUNTS, check_exportable, serialized, traced

FILE = "model.onnx"


def write(student: SpikingBert, tokenizer: Any, facts: Facts, directory: Path) -> dict[str, Any]:
    """`model.onnx` (inputs `input_ids`, `attention_mask`, `token_type_ids`, int64 `[batch, length]`; output `logits`
    float32) and the tokenizer. Raises InputError for a coding other than accumulate, and where the extra is missing."""
    check_exportable(student)
    batch = next(facts.batches())
    model = traced(student, tuple(batch[name][:2] for name in INPUTS))
    labels = None if facts.task.regression else list(facts.task.labels)
    model.metadata_props.update(
        {"task": facts.task.name, "labels": jsonfile.dumps(labels), "max_length": str(facts.max_length)}
    )
    whole = serialized(model)
    del model.graph.outputs[1:]
    (directory / FILE).write_bytes(serialized(model))
    tokenizer.save_pretrained(directory)
    return compared(student, directory / FILE, whole, COUNTS, facts)
