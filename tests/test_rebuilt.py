"""What the record of a stage says, `evaluate` and a compacted student say, whatever key of the student or of its
compression was set: a checkpoint describes the student that lies in it, and no configuration has a say in it."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from micro import GLUE, micro

from spikeprune.config.derived import COMPRESSION, value_of
from spikeprune.config.keys import every_key
from spikeprune.config.load import load, to_yaml
from spikeprune.config.schema import Config
from spikeprune.errors import InputError
from spikeprune.experiment.build import networks
from spikeprune.experiment.build.modules import student_module
from spikeprune.experiment.checkpoints import load_student, save_student, save_teacher
from spikeprune.experiment.compaction import compact_run
from spikeprune.experiment.context import RunContext, prepare
from spikeprune.experiment.evaluation import evaluate
from spikeprune.experiment.measurement import measure_student
from spikeprune.experiment.run_directory import RunDirectory
from spikeprune.experiment.summary import data_facts
from spikeprune.files.atomic import write_json
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.serialization import read_config
from spikeprune.models.sparsity import weights_of
from spikeprune.models.teacher import Teacher

PARENT, STAGE = "internal_kd", "prediction_kd"
STEPS = {"steps": 0}  # in the record of every stage
FEW = "stages.quantize.weights=ternary stages.quantize.epochs=2"
ALONE = {  # overrides, the first the one that is tried, the rest what it needs
    "student.layers=[1]": "",
    "student.spikes=binary": "",
    "student.spikes=ternary_scaled": "",
    "student.leak=0.8": "",
    "student.theta=tensor": "",
    "student.coding=running_mean": "",
    "student.coding=per_step": "student.forward=spiking",
    "student.forward=spiking": "",
    "student.query=spiking": "",
    "student.pooling=cls": "",
    "student.residual=membrane": "",
    "student.t_steps=[3,5,2]": "",
    "student.calibration=16": "",
    "student.feedback=true": "student.coding=running_mean",
    "student.dead_zone=20": "",
    "stages.spatial.synapses=0.6": "",
    "stages.spatial.block=4": "stages.spatial.synapses=0.6",
    "stages.quantize.weights=binary": "stages.quantize.epochs=2",
    "stages.quantize.weights=int8": "stages.quantize.epochs=2",
    "stages.quantize.fold=true": FEW,
    "stages.quantize.embeddings=int8": "stages.quantize.epochs=2",
}
OFF = "stages.spatial.epochs=0 stages.temporal.epochs=0"
TOGETHER = {  # keys that say when and how a callback decides: many of them at once change nothing either
    "ranked": "stages.spatial.heads=0.7 stages.spatial.ffn=0.6 stages.temporal.t_steps=3"
    " stages.spatial.criterion=taylor stages.spatial.end=0.7"
    " stages.spatial.scope=layer"
    " stages.temporal.criterion=uniform stages.temporal.end=0.8",
    "quantized": f"{FEW} stages.quantize.end=0.9",
    "searched": "stages.spatial.heads=1 stages.spatial.ffn=1 stages.spatial.criterion=kwon"
    " stages.spatial.operations=0.6",
    "budget": f"{OFF} stages.budget.target=latency stages.budget.value=0.5 stages.budget.candidates=[ffn,steps]"
    " stages.budget.epochs=2 stages.budget.end=0.7",
    "energy": f"{OFF} stages.budget.value=0.5 stages.budget.epochs=2",
}
TRIED = {key: f"{key} {rest}".split() for key, rest in ALONE.items()} | {k: v.split() for k, v in TOGETHER.items()}


def test_every_key_of_the_student_and_its_compression_is_tried() -> None:
    """At a value that is not its default; a new key needs a row above."""
    compression = tuple(f"stages.{name}." for name in COMPRESSION)
    trained = {key.removeprefix("stages.teacher.") for key in every_key() if key.startswith("stages.teacher.")}
    wanted = {key for key in every_key() if key.startswith(compression) and key.split(".", 2)[2] not in trained}
    wanted |= {key for key in every_key() if key.startswith("student.")}
    configs = [load(GLUE, [*micro("runs/x", "glue"), *row]) for row in TRIED.values()]
    assert not {key for key in wanted if all(value_of(c, key) == value_of(Config(), key) for c in configs)}


@pytest.fixture(scope="module")
def begun(glue, tmp_path_factory) -> SimpleNamespace:
    """A teacher of random weights, which every run here learns from."""
    folder = tmp_path_factory.mktemp("begun")
    torch.manual_seed(0)
    context = prepare(load(GLUE, micro(folder, glue)))
    return SimpleNamespace(glue=glue, context=context, teacher=Teacher.scratch(context.teacher_config).freeze())


def context_of(begun, folder, overrides) -> RunContext:
    return prepare(load(GLUE, [*micro(folder, begun.glue), *overrides]))


def begin(context: RunContext, begun) -> RunDirectory:
    directory = RunDirectory(context.config.run.dir)
    directory.create(need=0)
    directory.config.write_text(to_yaml(context.config))
    write_json(directory.path / "data.json", data_facts(context))
    save_teacher(context, directory, begun.teacher, STEPS)
    return directory


def new_student(context: RunContext, begun) -> SpikingBert:
    torch.manual_seed(1)
    return networks.student(context, begun.teacher, context.data.calibration_batches(32, 0))


@torch.no_grad()
def train(student: SpikingBert) -> None:
    """What stages may do to a student, quickly: other weights and thresholds, masks, steps, few bits, no synapses."""
    torch.manual_seed(2)
    for name, parameter in student.named_parameters():
        parameter.add_((0.2 if name.endswith("log_theta") else 0.1) * torch.randn_like(parameter))
    student.heads[0, 1] = 0
    student.ffn[:, ::3] = 0
    student.set_t_steps([max(1, t - i % 2) for i, t in enumerate(student.steps)])
    if student.weights != "float":
        student.set_strength(1.0)
    if student.synapses is not None:
        for *_, weight in weights_of(student):
            weight.mul_(torch.rand_like(weight) < 0.6)
        student.synapses.refresh_masks(student)


def said(measured: dict) -> dict:
    """As JSON has it, without what only a clock tells."""
    return json.loads(json.dumps({key: measured[key] for key in ("metrics", "main", "fidelity", "cost", "t_steps")}))


@pytest.mark.parametrize("row", TRIED)
def test_a_record_is_what_evaluate_and_the_compacted_student_say(row, begun, tmp_path) -> None:
    """The stage before was finished under the configuration without the row's keys of compression, as one that
    `run.start_from` takes over."""
    overrides = TRIED[row]
    context = context_of(begun, tmp_path / "run", overrides)
    directory = begin(context, begun)
    before = context_of(begun, tmp_path / "run", [o for o in overrides if o.startswith("student.")])
    save_student(before, directory, PARENT, None, new_student(before, begun), STEPS)
    student = load_student(directory, PARENT, context.config)
    train(student)
    measured = measure_student(context, student_module(context, STAGE, student, begun.teacher), STAGE)
    save_student(context, directory, STAGE, PARENT, student, {**measured, **STEPS})

    again = evaluate(directory.path, stage=STAGE)
    assert said(again) == said(measured)
    compact_run(directory.path, stage=STAGE)
    small = evaluate(directory.path, compacted=True)
    assert small["metrics"] == measured["metrics"] and small["t_steps"] == measured["t_steps"]
    assert small["fidelity"] == pytest.approx(measured["fidelity"], abs=1e-4)
    for folder in (directory.stage(STAGE), directory.compact):
        described = json.loads((folder / "config.json").read_text())
        assert described["id2label"] == {"0": "negative", "1": "positive"}
        assert described["label2id"] == {"negative": 0, "positive": 1}
    assert json.loads((directory.stage("teacher") / "config.json").read_text())["label2id"]["positive"] == 1


def test_a_student_does_not_look_at_the_configuration_beside_it(begun, tmp_path) -> None:
    """The saved configuration of the run changed under it: the student is the one that was saved."""
    context = context_of(begun, tmp_path / "run", f"stages.quantize.fold=true {FEW}".split())
    directory, student = begin(context, begun), new_student(context, begun)
    train(student)
    save_student(context, directory, PARENT, None, student, STEPS)
    batch = {k: v for k, v in context.data.calibration_batches(8, 0).items() if k != "labels"}
    again = load_student(directory, PARENT, Config())  # has begun to be quantized: the rest is the student's
    with torch.no_grad():
        assert torch.equal(again.eval()(**batch).logits, student.eval()(**batch).logits)
    assert again.fold and again.values["labels"] == ["negative", "positive"]


def test_a_student_is_not_rounded_to_another_precision(begun, tmp_path) -> None:
    context = context_of(begun, tmp_path / "run", ["run.precision=64-true"])
    directory, student = begin(context, begun), new_student(context, begun).double()
    train(student)
    save_student(context, directory, PARENT, None, student, STEPS)
    again = load_student(directory, PARENT)
    assert all(torch.equal(tensor, student.state_dict()[name]) for name, tensor in again.state_dict().items())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"model_type": "bert"}', "describes a 'bert' model and not a spiking BERT"),
        ('{"model_type": "spiking_bert", "wings": 2}', "'wings' is no value of a spiking BERT"),
    ],
)
def test_a_damaged_description_is_one_sentence(text, message, tmp_path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_config(tmp_path, "remove it")
    assert str(tmp_path / "config.json") in str(caught.value) and "remove" in str(caught.value)
    (tmp_path / "config.json").unlink()
    with pytest.raises(InputError, match="is missing"):
        read_config(tmp_path, "remove it")


def test_a_compacted_student_is_measured_as_it_was_made(begun, tmp_path) -> None:
    """Compacted under another coding it keeps that, unless the measurement asks for one."""
    context = context_of(begun, tmp_path / "run", ["student.t_steps=3"])
    directory, student = begin(context, begun), new_student(context, begun)
    train(student)
    save_student(context, directory, PARENT, None, student, STEPS)
    compact_run(directory.path, stage=PARENT, overrides=["student.coding=running_mean"])
    own, back = (
        evaluate(directory.path, compacted=True, overrides=overrides)
        for overrides in ([], ["student.coding=accumulate"])
    )
    masked = evaluate(directory.path, stage=PARENT)
    assert back["fidelity"] == pytest.approx(masked["fidelity"], abs=1e-4)
    assert own["fidelity"] != pytest.approx(masked["fidelity"], abs=1e-4)
