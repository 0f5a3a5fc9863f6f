"""ONNX files of students of all kinds, computed by onnxruntime."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from micro import ROOT
from test_compact import N, make, sentences

from spikeprune.config.tasks import Task
from spikeprune.data.batching import Encoded
from spikeprune.errors import InputError
from spikeprune.export import onnx_file
from spikeprune.export.facts import Facts, Teacher
from spikeprune.export.onnx_check import compared
from spikeprune.models.compaction import compact
from spikeprune.models.outputs import INPUTS
from spikeprune.runtime import onnx_graph

for name in onnx_graph.NEEDS:
    pytest.importorskip(name, reason=f"{name} is not installed: the extra onnx, for Python 3.11 and newer")
import onnx  # noqa: E402
import onnxruntime  # noqa: E402

TASK = Task("own", ("text",), "own", ("text",), "label", ("a", "b", "c"), ("a", "b", "c"), ("accuracy",), ("accuracy",))


class Tokenizer:
    def save_pretrained(self, folder: Path) -> None:
        (folder / "vocab.txt").write_text("")


def facts_of(lengths=(8, 5, 2, 3, 1, 7)) -> Facts:
    """A dev split of random sentences."""
    batch = sentences(lengths)
    mask = batch["attention_mask"].bool()
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    dev = Encoded(batch["input_ids"][mask], batch["token_type_ids"][mask], offsets, None, pad_id=0, max_length=N)
    nothing = {"dense": {}, "record": {}, "data": {}, "teacher": Teacher(None, None, False)}
    return Facts(command="", trained="", stage="spatial", task=TASK, dev=dev, max_length=N, **nothing)


def student_of(**options):
    student = make(dtype=torch.float32, **options)
    if "weights" in options:
        student.set_strength(1)
    return compact(student)


def run(file: Path, batch) -> np.ndarray:
    return onnxruntime.InferenceSession(str(file)).run(["logits"], {name: batch[name].numpy() for name in INPUTS})[0]


INTEGER = {"weights": "ternary", "fold": True, "residual": "membrane", "pooling": "cls"}
KINDS = {
    "binary": {"spikes": "binary", "theta": "tensor", "weights": "binary"},
    "int8": {"weights": "int8", "fold": True, "query": "spiking"},
    "not folded": {"weights": "ternary"},
    "scaled": {"spikes": "ternary_scaled", "weights": "ternary", "fold": True},
    "long": {"t_steps": (65, 70, 100, 200), "weights": "ternary", "fold": True},
    "relative": {"relative_buckets": 8, "weights": "ternary", "fold": True},
    "steps": {"leak": 0.9, "query": "spiking", "dead_zone": True},
}
EVERY = [pytest.param({}, id="float"), pytest.param(INTEGER, id="integer")]  # a trace takes seconds
EVERY += [pytest.param(kind, id=name, marks=pytest.mark.slow) for name, kind in KINDS.items()]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """`(file, what its check found)` of a kind of student."""

    @cache
    def write(kind: tuple) -> tuple[Path, dict]:
        folder = tmp_path_factory.mktemp("onnx")
        return folder / "model.onnx", onnx_file.write(student_of(**dict(kind)), Tokenizer(), facts_of(), folder)

    return lambda options: write(tuple(options.items()))


@pytest.fixture
def integer_file(written) -> Path:
    return written(INTEGER)[0]


@pytest.mark.parametrize("options", EVERY)
def test_onnxruntime_computes_the_student(options, written) -> None:
    """Any batch, any length, padding, layers without heads or neurons; the spikes of every layer."""
    file, found = written(options)
    assert found["equal_labels"] == found["sentences"] == 6
    assert found["differing_spikes"] < (0.05 if "t_steps" in options else 0.005)  # long trains have more edges
    onnx.checker.check_model(file)
    for lengths in ((1,), (8, 2, 5)):
        with torch.no_grad():
            expected = student_of(**options)(**sentences(lengths)).logits
        np.testing.assert_allclose(run(file, sentences(lengths)), expected, atol=0.01 if "t_steps" in options else 1e-5)


def test_quantized_matrices_are_integers_and_multiplied_as_such(integer_file, tmp_path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(str(integer_file), options)
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    layers = student_of(**INTEGER).layers
    assert kinds.count("MatMulIntegerToFloat") == sum(4 * (layer.heads > 0) + 2 * (layer.ffn > 0) for layer in layers)
    assert "MatMul" not in kinds and "SkipLayerNormalization" not in kinds
    written = onnx.load(integer_file)
    bytes_of = [t for t in written.graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 2]
    assert sum(np.prod(t.dims) for t in bytes_of) == sum(
        4 * 12 * layer.heads * layer.head_size + 2 * 12 * layer.ffn for layer in layers
    )


def test_the_file_names_its_labels_and_nothing_of_this_machine(integer_file) -> None:
    data, model = integer_file.read_bytes(), onnx.load(integer_file)
    assert {entry.key: entry.value for entry in model.metadata_props} == {
        "task": "own",
        "labels": '["a", "b", "c"]',
        "max_length": str(N),
    }
    assert [output.name for output in model.graph.output] == ["logits"]
    assert str(ROOT).encode() not in data and b"site-packages" not in data and b"spikeprune/export" not in data


FOREIGN = """
import sys, numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
feed = {i.name: np.ones((2, 5), np.int64) for i in session.get_inputs()}
assert session.run(None, feed)[0].shape == (2, 3)
assert not any(name.partition(".")[0] in ("spikeprune", "torch", "lightning") for name in sys.modules)
"""


def test_onnxruntime_alone_loads_it(integer_file) -> None:
    done = subprocess.run([sys.executable, "-c", FOREIGN, str(integer_file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("coding", ["running_mean", "per_step"])
def test_codings_without_a_closed_form_are_refused(coding, tmp_path) -> None:
    with pytest.raises(InputError, match=f"coding {coding} has no closed form.*student.coding=accumulate"):
        onnx_file.write(student_of(coding=coding), Tokenizer(), facts_of(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_missing_extra_is_told_in_a_sentence(monkeypatch) -> None:
    monkeypatch.setattr(onnx_graph, "NEEDS", ("onnx", "no_such_module"))
    with pytest.raises(InputError, match=r"no_such_module cannot be imported; install spikeprune\[onnx\]"):
        onnx_graph.check_installed()


def test_a_file_of_another_network_is_a_fault(integer_file) -> None:
    other = student_of(**INTEGER)
    other.classifier.bias.data += torch.tensor([9.0, 0, 0])
    with pytest.raises(RuntimeError, match="the file is not the student: labels equal on"):
        compared(other, integer_file, integer_file.read_bytes(), "spikes.", facts_of())
