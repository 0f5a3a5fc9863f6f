"""A network as a graph for onnxruntime: traced, rewritten, serialized, opened.

A student's closed form is written for ONNX first (`onnx_network.py`), its graph is rewritten afterwards
(`onnx_rewrite.py`); a dense network is exported as PyTorch does it. onnx, onnxscript and onnxruntime are an extra,
imported where they are used.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from spikeprune import __version__
from spikeprune.errors import InputError
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.outputs import INPUTS
from spikeprune.runtime import onnx_rewrite
from spikeprune.runtime.onnx_network import Classifier

OPSET, DENSE_OPSET = 23, 18  # 23: the first with Attention
NEEDS = ("onnx", "onnxscript", "onnxruntime")
COUNTS = "spikes."  # before the name of a spiking layer: its counts, an output that only a check reads


def check_exportable(student: SpikingBert) -> None:
    """Raises InputError for a coding other than accumulate, and where the extra cannot be imported."""
    if student.coding != "accumulate":
        raise InputError(
            f"onnx: a student of coding {student.coding} has no closed form to export; `spikeprune compact RUN "
            "student.coding=accumulate` makes one that has, and --compact exports it"
        )
    check_installed()


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
    outputs = ["logits", *(f"{COUNTS}{name}" for name in network.fired)]
    model = exported(network, inputs, outputs=outputs, opset=OPSET)
    onnx_rewrite.rewrite(onnx_ir, model.graph)
    strip_traces(model.graph)
    model.producer_name, model.producer_version = "spikeprune", __version__
    return model


def logits_alone(student: SpikingBert, inputs: tuple[torch.Tensor, ...]) -> bytes:
    """`traced` as a file, without the counts, which only a check reads."""
    model = traced(student, inputs)
    del model.graph.outputs[1:]
    return serialized(model)


class Logits(torch.nn.Module):
    """The logits alone of a network that has them among its outputs."""

    def __init__(self, network: torch.nn.Module):
        super().__init__()
        self.network = network

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> torch.Tensor:
        return self.network(input_ids, attention_mask, token_type_ids).logits


def dense(network: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> bytes:
    """A dense classifier in float32, the bytes of an ONNX file. `inputs`: as of `traced`. Raises InputError for an
    architecture that PyTorch does not export."""
    try:
        return serialized(exported(Logits(network), inputs, outputs=["logits"], opset=DENSE_OPSET))
    except torch.onnx.OnnxExporterError as error:
        raise InputError(f"onnx: PyTorch cannot export this network ({str(error).splitlines()[0]})") from None


def in_int8(model: bytes) -> bytes:
    """A dense network with int8 weights, and activations that are quantized as it runs, by onnxruntime's own tool."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with quiet(), tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "int8.onnx"
        quantize_dynamic(onnx.load_from_string(model), file, weight_type=QuantType.QInt8)
        return file.read_bytes()


def exported(network: torch.nn.Module, inputs: tuple[torch.Tensor, ...], *, outputs: list[str], opset: int) -> Any:
    """A network of INPUTS as PyTorch exports it, for all sizes of batch and length; an onnx_ir.Model."""
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            network,
            inputs,
            dynamo=True,
            opset_version=opset,
            input_names=list(INPUTS),
            output_names=outputs,
            dynamic_shapes=[{0: "batch", 1: "length"}] * len(INPUTS),
            verbose=False,
        )
    return program.model


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
    """Without the remarks of exporter and quantizer on packages and steps that could be added."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", None)]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def session(model: str | bytes, *, threads: int = 0) -> Any:
    """An onnxruntime session of a file or its bytes, on the CPU; 0 threads: as many as it likes."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3  # errors only
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
