"""`onnx`: one file for onnxruntime that computes a student's closed form, checked on the dev split.

The network is traced (`onnx_network.py`), its graph rewritten (`onnx_rewrite.py`), and what was written compared with
the student (`onnx_check.py`). onnx, onnxscript and onnxruntime are an extra, imported where they are used.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from spikeprune import __version__
from spikeprune.errors import InputError
from spikeprune.export import onnx_rewrite
from spikeprune.export.facts import Facts
from spikeprune.export.onnx_check import compared
from spikeprune.export.onnx_network import Classifier
from spikeprune.files import jsonfile
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.outputs import INPUTS

FILE = "model.onnx"
OPSET = 23  # the first with Attention
NEEDS = ("onnx", "onnxscript", "onnxruntime")
COUNTS = "spikes."  # before the name of a spiking layer: its counts, an output that only the check reads


def write(student: SpikingBert, tokenizer: Any, facts: Facts, directory: Path) -> dict[str, Any]:
    """`model.onnx` (inputs `input_ids`, `attention_mask`, `token_type_ids`, int64 `[batch, length]`; output `logits`
    float32) and the tokenizer. Raises InputError for a coding other than accumulate, and where the extra is missing."""
    if student.coding != "accumulate":
        raise InputError(
            f"onnx: a student of coding {student.coding} has no closed form to export; `spikeprune compact RUN "
            "student.coding=accumulate` makes one that has, and --compact exports it"
        )
    check_installed()
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


def check_installed() -> None:
    """Raises InputError where the extra cannot be imported."""
    if lacking := missing():
        old = " with Python 3.11 or newer" if sys.version_info < (3, 11) else ""
        raise InputError(f"onnx: {' and '.join(lacking)} cannot be imported; install spikeprune[onnx]{old}")


def missing() -> list[str]:
    """Packages of the extra that are not installed."""
    return [name for name in NEEDS if importlib.util.find_spec(name) is None]


def traced(student: SpikingBert, inputs: tuple[torch.Tensor, ...]) -> Any:
    """The rewritten network, an onnx_ir.Model with the outputs `logits` and each layer's counts. `inputs`: an example
    of at least two sentences."""
    import onnx_ir

    network = Classifier(student)
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            network,
            inputs,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(INPUTS),
            output_names=["logits", *(f"{COUNTS}{name}" for name in network.fired)],
            dynamic_shapes=[{0: "batch", 1: "length"}] * len(INPUTS),
            verbose=False,
        )
    model = program.model
    onnx_rewrite.rewrite(onnx_ir, model.graph)
    strip_traces(model.graph)
    model.producer_name, model.producer_version = "spikeprune", __version__
    return model


def strip_traces(graph: Any) -> None:
    """Without the exporter's notes, which name lines of source on the machine that made the file."""
    for node in graph:
        for noted in (node, *node.outputs):
            noted.metadata_props.clear()
    graph.metadata_props.clear()


def serialized(model: Any) -> bytes:
    """The bytes of an ONNX file of an onnx_ir.Model, without what nothing reads."""
    import onnx_ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    RemoveUnusedNodesPass()(model)
    return onnx_ir.serde.serialize_model(model).SerializeToString()


@contextmanager
def quiet() -> Iterator[None]:
    """Without the exporter's remarks about packages that are not installed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
