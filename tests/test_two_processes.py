"""Every feature in two processes: what is handed over survives a pickle, and both end with the same network."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import pytest
import torch
from micro import GLUE, micro, only, write_sst2
from students import make, prune, sentences
from together import attempt, together

from spikeprune.config.load import load
from spikeprune.config.tasks import TASKS
from spikeprune.experiment.build import networks
from spikeprune.experiment.context import prepare
from spikeprune.experiment.run_directory import RunDirectory
from spikeprune.models.modeling import SpikingBert

pytestmark = pytest.mark.filterwarnings("ignore")

STUDENTS = [
    {"sparse": True},
    {"spikes": "binary", "theta": "tensor", "query": "spiking", "pooling": "cls"},
    {"spikes": "ternary_scaled", "leak": 0.9, "coding": "running_mean", "residual": "membrane"},
    {"coding": "per_step", "feedback": True},
    {"weights": "ternary", "fold": True, "dead_zone": True},
    {"weights": "binary"},
    {"weights": "int8", "dead_zone": True},
]


@pytest.mark.parametrize("options", STUDENTS, ids=str)
def test_a_student_sent_to_another_process_is_the_same(options) -> None:
    """As torch.distributed sends it, and then it takes over what rank 0 decides."""
    student = prune(make(**options))
    sent: SpikingBert = pickle.loads(pickle.dumps(student))
    assert all(reading.tensor is None for reading in sent._read.values())
    for name, tensor in student.state_dict().items():
        assert torch.equal(sent.state_dict()[name], tensor), name
    assert torch.equal(sent(**sentences(), mode="spiking").logits, student(**sentences(), mode="spiking").logits)
    student.set_t_steps([2, 1, 2])
    if student.weights != "float":
        student.set_strength(1.0)
    with torch.no_grad():
        student.layers[0].up.weight[:5] = 0.0
    sent.load_state_dict(student.state_dict())
    assert (sent.steps, sent.quantized, sent.synapse_count()) == (student.steps, student.quantized, same_count(student))
    assert torch.equal(sent(**sentences(), mode="spiking").logits, student(**sentences(), mode="spiking").logits)
    torch.save(sent, io.BytesIO())


def same_count(student: SpikingBert) -> int | None:
    if student.synapses is not None:
        student.synapses.refresh_masks(student)
    return student.synapse_count()


SHORT = ["stages.teacher.epochs=9", "stages.internal_kd.epochs=1", "stages.prediction_kd.epochs=0"]
SHORT += [f"stages.{name}.epochs=1" for name in ("spatial", "temporal", "finetune")]
SHORT += ["student.t_steps=3", "stages.temporal.t_steps=2", "data.replace_words=0.3"]
QUANTIZED = [*only("teacher", "internal_kd", "spatial", "temporal", "quantize"), "stages.quantize.epochs=1"]
UNSEARCHED = ["stages.spatial.heads=1", "stages.spatial.ffn=1", "stages.temporal.t_steps=null"]
SPIKING = ["student.forward=spiking"]

RUNS = {
    "synapses": ["stages.spatial.synapses=0.5", "stages.spatial.criterion=magnitude"]
    + ["stages.finetune.losses.additions=1.0", "stages.finetune.losses.additions_limit=0.1"],
    "feedback": [*SPIKING, "student.feedback=true", "student.coding=per_step", "stages.spatial.criterion=fisher"]
    + ["stages.temporal.criterion=sensitivity"],
    "kwon": [*UNSEARCHED, *QUANTIZED, "stages.spatial.criterion=kwon", "stages.spatial.operations=0.5"]
    + ["stages.quantize.weights=ternary", "stages.quantize.fold=true", "stages.temporal.epochs=0"],
    "joint": [*UNSEARCHED, *only("teacher", "internal_kd", "budget", "quantize"), "stages.budget.epochs=2"]
    + ["stages.budget.target=ac", "stages.budget.value=0.3"]
    + ["stages.budget.losses.additions=1.0", "stages.quantize.weights=binary", "stages.quantize.epochs=1"],
    "taylor": [*QUANTIZED, "stages.spatial.criterion=taylor", "stages.temporal.criterion=uniform"]
    + ["stages.quantize.weights=int8", "student.query=spiking", "student.pooling=cls", "student.leak=0.9"],
    "rate": ["stages.spatial.criterion=rate", "student.spikes=ternary_scaled", "student.dead_zone=20"]
    + ["student.coding=running_mean", "student.residual=membrane", "stages.spatial.scope=layer"],
    "random": ["stages.spatial.criterion=random", "student.spikes=binary", "student.theta=tensor"]
    + ["run.precision=bf16-mixed"],
}


@pytest.fixture(scope="module")
def sst2(tmp_path_factory) -> Path:
    return write_sst2(tmp_path_factory.mktemp("glue"), train=31, dev=11)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_both_processes_have_the_same_masks_steps_and_weights(name, sst2, tmp_path) -> None:
    """At each step of each stage; at a stage's end the run itself compares all that the module holds."""
    run, log = RunDirectory(tmp_path / "run"), tmp_path / "log"
    codes = together(2, log, attempt, [*micro(run.path, sst2), *SHORT, *RUNS[name], "run.devices=2"], tmp_path)
    assert codes == [0, 0], log.read_text()
    one, two = ((tmp_path / f"rank{rank}.jsonl").read_text().splitlines() for rank in (0, 1))
    assert one == two and len(one) >= 2 * 4
    assert run.complete(["teacher"])


@pytest.mark.parametrize("task", TASKS)
def test_what_a_run_has_read_is_sent_whole(task, tmp_path) -> None:
    given = [*micro(tmp_path), f"task={task}", "data.embedded=[40,20]"]
    context = prepare(
        load(GLUE, [*given, "student.t_steps=[1,2,3]", "stages.temporal.t_steps=null", "stages.temporal.epochs=0"])
    )
    sent = pickle.loads(pickle.dumps(context))
    assert (sent.config, sent.task, sent.layers) == (context.config, context.task, context.layers)
    for mine, theirs in zip(*(p.data.calibration_batches(8, 0).items() for p in (context, sent)), strict=True):
        assert mine[0] == theirs[0] and torch.equal(mine[1], theirs[1])
    teacher = networks.teacher(context)
    for name, tensor in pickle.loads(pickle.dumps(teacher)).state_dict().items():
        assert torch.equal(tensor, teacher.state_dict()[name]), name
