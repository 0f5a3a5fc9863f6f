"""What a user of a CPU waits for: the whole call, of an exported student and of its dense teacher by other ways.

The student has the heads, neurons and time steps that preset minilm leaves, with random weights; its dense teacher is
the same BERT, float32 and dynamically quantized to int8 by onnxruntime's own tool.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BertForSequenceClassification

from experiments.bench import nets
from experiments.bench.clock import timings
from experiments.bench.report import DENSE, DENSE_INT8, GOALS
from experiments.bench.rows import Setting, difference
from spikeprune.models.inference import infer
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.outputs import INPUTS
from spikeprune.models.sequence_classification import SpikingBertForSequenceClassification
from spikeprune.runtime import onnx_graph

LEFT, T_STEPS = {"heads": 0.5, "ffn": 0.3}, 3
TOKENS, SENTENCES, THREADS = 25, (1, 8), (1, 2)
STUDENTS = {
    "ternary student": {"weights": "ternary", "fold": True, "word_table": "int8"},
    "float student": {},
}
# Growth of resident memory from before the model is loaded to its peak in the first call, in a process of its own.
KILOBYTES = """
import re, sys
def kilobytes(name):
    return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status", encoding="ascii").read())[1])
"""
MEMORY = {
    "onnx": """
import numpy as np, onnxruntime
before = kilobytes("VmRSS")
session = onnxruntime.InferenceSession(sys.argv[1])
ids = np.ones((1, {tokens}), np.int64)
session.run(None, {{given.name: ids for given in session.get_inputs()}})
""",
    "torch": """
import torch
from transformers import AutoModelForSequenceClassification
from spikeprune import SpikingBertForSequenceClassification
before = kilobytes("VmRSS")
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1]).eval()
ids = torch.ones(1, {tokens}, dtype=torch.long)
with torch.no_grad():
    model(input_ids=ids, attention_mask=ids)
""",
}
GROWN = 'print(1024 * (kilobytes("VmHWM") - before))'


def deployed(at: Setting) -> Iterator[dict[str, Any]]:
    """A row for each way, batch and number of threads: seconds, ratio to the dense network in onnxruntime float32,
    growth of memory, bytes of the file. Without the extra onnx there is none."""
    if at.device.type != "cpu" or onnx_graph.missing():
        return
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        size, place = at.sizes[0], Path(folder)
        models = {name: student(size, **options) for name, options in STUDENTS.items()}
        files = written(size, models, place)
        sizes = {name: weights_of(file).stat().st_size for name, file in files.items()}
        grown = {name: memory(file) for name, file in files.items()}
        try:
            for count in THREADS:
                torch.set_num_threads(count)
                for sentences in SENTENCES:
                    batch = nets.batch(size, sentences=sentences, tokens=TOKENS, device=at.device)
                    calls = {name: call(file, models, name, count) for name, file in files.items()}
                    works = {name: (lambda run=run, batch=batch: run(batch)) for name, run in calls.items()}
                    found = timings(works, at.device, budget=at.budget)
                    for name, timing in found.items():
                        row = {"way": name, "B": sentences, "N": TOKENS, "threads": count, "network": size.name}
                        row |= {"seconds": timing.median, "low": timing.low, "high": timing.high}
                        row |= {"memory": grown[name], "file": sizes[name]}
                        row |= {f"ratio {other}": found[other].median / timing.median for other in GOALS}
                        yield row | logit_difference(name, calls, batch)
        finally:
            torch.set_num_threads(threads)


def student(size: nets.Size, **options: Any) -> SpikingBert:
    """A compacted student with the share `LEFT` of the units and `T_STEPS`."""
    made = nets.student(size, torch.device("cpu"), t_steps=T_STEPS, pooling="cls", residual="membrane", **options)
    if options:
        made.set_strength(1)
    return nets.compacted(made, **LEFT).eval()


def written(size: nets.Size, models: dict[str, SpikingBert], folder: Path) -> dict[str, Path]:
    """The file of each way, or the directory that transformers loads."""
    files = {}
    inputs = tuple(nets.batch(size, sentences=2, tokens=TOKENS, device=torch.device("cpu"))[name] for name in INPUTS)
    for name, model in models.items():
        files[f"{name}, exported"] = folder / f"{name}.onnx"
        files[f"{name}, exported"].write_bytes(onnx_graph.logits_alone(model, inputs))
        files[f"{name}, PyTorch"] = folder / name
        SpikingBertForSequenceClassification.of(model).save_pretrained(files[f"{name}, PyTorch"])
    files["dense, PyTorch"] = folder / "dense"
    size.bert().save_pretrained(files["dense, PyTorch"])
    files[DENSE], files[DENSE_INT8] = folder / "dense.onnx", folder / "dense-int8.onnx"
    dense = onnx_graph.dense(size.bert(), inputs)
    files[DENSE].write_bytes(dense)
    files[DENSE_INT8].write_bytes(onnx_graph.in_int8(dense))
    return files


def call(file: Path, models: dict[str, SpikingBert], name: str, threads: int) -> Callable[[dict[str, Tensor]], Tensor]:
    """`batch -> logits`, everything between the two included."""
    if file.suffix == ".onnx":
        session = onnx_graph.session(str(file), threads=threads)
        names = [given.name for given in session.get_inputs()]
        return lambda batch: torch.from_numpy(session.run(None, {key: batch[key].numpy() for key in names})[0])
    if student := models.get(name.removesuffix(", PyTorch")):
        return lambda batch: infer(student, **batch).logits
    bert = BertForSequenceClassification.from_pretrained(file).eval()
    return partial(nets.logits, bert)


def logit_difference(name: str, calls: dict[str, Callable], batch: dict[str, Tensor]) -> dict[str, float]:
    """Of what is exported to the same network in PyTorch."""
    twin = "dense, PyTorch" if name in GOALS else name.replace(", exported", ", PyTorch")
    return {} if twin == name else {"difference": difference(calls[twin](batch), calls[name](batch))}


def weights_of(file: Path) -> Path:
    return file if file.is_file() else file / "model.safetensors"


def memory(file: Path) -> int:
    """Bytes by which a process grows that loads the model and calls it once."""
    script = KILOBYTES + MEMORY["onnx" if file.suffix == ".onnx" else "torch"].format(tokens=TOKENS) + GROWN
    done = subprocess.run([sys.executable, "-c", script, str(file)], capture_output=True, encoding="utf-8", check=True)
    return int(done.stdout.splitlines()[-1])
