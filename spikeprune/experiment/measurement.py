"""Quality and cost of a teacher or student on the dev split, from its spikes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import pstdev
from typing import Any

from spikeprune.config.keys import leaves
from spikeprune.config.tasks import CUSTOM
from spikeprune.cost.dense import dense
from spikeprune.cost.energy_models import ENERGY_MODELS
from spikeprune.cost.network import dense_network
from spikeprune.cost.shapes import matrix_bytes
from spikeprune.cost.summary import summarize
from spikeprune.data.description import WIDE
from spikeprune.errors import InputError
from spikeprune.experiment.build import trainers
from spikeprune.experiment.build.callbacks import cost_logger
from spikeprune.experiment.build.networks import teacher_shape
from spikeprune.experiment.context import RunContext
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.shape import student_shape
from spikeprune.models.sparsity import share
from spikeprune.training.callbacks.finite import StopOnNonFinite
from spikeprune.training.lightning_patches import ctrl_c
from spikeprune.training.metrics import main_metric, of_majority
from spikeprune.training.modules.student import DistillationModule
from spikeprune.training.modules.task import TaskModule, TeacherModule

FLOAT32 = "pooler, classifier, biases, layer norms, thresholds"  # never quantized, as position embeddings
Measured = dict[str, Any]  # {"metrics", "main", "cost", …}


def measure_teacher(context: RunContext, module: TeacherModule) -> Measured:
    evaluator = trainers.evaluator(context.config, [StopOnNonFinite("teacher")])
    with ctrl_c(evaluator):
        evaluator.validate(module, datamodule=context.data, verbose=False)
    lengths = context.data.val_dataloader()[0].data.lengths
    shape = teacher_shape(context)
    network = dense_network(dense(lengths, shape=shape), shape=shape)
    model = ENERGY_MODELS[context.config.cost.model]
    cost = summarize(network, dense_ops=network.ops, model=model, shape=shape)
    cost["work"] = network.ops.work()
    cost["params"] = sum(parameter.numel() for parameter in module.teacher.parameters())
    cost["bytes"] = 4 * cost["params"]
    energy = {name: {"teacher": one.per_sample(network)} for name, one in ENERGY_MODELS.items()}
    found = {**quality(context, module), "cost": cost, "energy": energy}
    return {**found, "note": context.logits_alone} if context.logits_alone else found


def measure_student(context: RunContext, module: DistillationModule, stage: str) -> Measured:
    """From the student's spikes. Raises InputError, which names the `stage`, where a number that is found is not
    finite."""
    counter, student = cost_logger(context), module.student
    evaluator = trainers.evaluator(context.config, [StopOnNonFinite(stage), counter])
    with ctrl_c(evaluator):
        evaluator.validate(module, datamodule=context.data, verbose=False)
    measured = {
        **quality(context, module),
        "fidelity": validated(module, context.task.fidelity),
        "cost": counter.cost,
        "energy": counter.energy,
        "t_steps": student.steps,
        "heads": [int(n) for n in student.heads.sum(1).tolist()],
        "ffn": [int(n) for n in student.ffn.sum(1).tolist()],
        **({} if student.synapses is None else {"synapses": share(student)}),
        "encoder_weights": encoder_weights(student),
    }
    check_finite(measured, f"stage {stage}, split {context.task.dev_splits[0]!r}")
    return measured


def silent_layers(measured: Measured) -> list[str]:
    """The spiking layers without any spike on the dev split, but for those whose units are all pruned."""
    return [name for name, rate in measured["cost"]["rates"].items() if rate == 0.0]


def largest_class(context: RunContext) -> dict[str, float] | None:
    """The metrics on the first dev split of one who always answers its largest class; None for a regression."""
    task = context.task
    if task.regression:
        return None
    labels = context.raw.splits[task.dev_splits[0]].labels
    return {name: of_majority(name, labels, task.num_labels) for name in task.metrics}


def no_better_than_constant(context: RunContext, measured: Measured) -> bool:
    """Whether a student has lost the task: its main metric is not above that of a constant answer, whose correlation
    is 0."""
    constant = largest_class(context)
    return measured["main"] <= (main_metric(context.task, constant) if constant else 0.0)


def encoder_weights(student: SpikingBert) -> dict[str, Any]:
    """Kind of the encoder's matrices, their packed size without pruned units, and the tensors that stay float."""
    size = matrix_bytes(
        shape=student_shape(student),
        heads=student.heads,
        ffn=student.ffn,
        bits=student.stored_bits,
        synapses=student.synapse_count(),
    )
    return {
        "kind": student.weights if student.quantized else "float",
        "strength": student.quantized,
        "stored_bits": student.stored_bits,
        "word_table_bits": student.embedding.word.stored_bits,
        "bytes": size,
        "float32": ", ".join(float_tensors(student)),
    }


def float_tensors(student: SpikingBert) -> list[str]:
    """What stays float32 in the compacted file."""
    table = student.embedding.word.final
    if not (table or student.quantized):
        return ["everything"]
    own = [] if student.quantized else ["encoder weights"]
    return [*own, "position embeddings" if table else "embeddings", FLOAT32]


def quality(context: RunContext, module: TaskModule) -> dict[str, Any]:
    """The task's metrics as the module's last validation found them (further dev splits as `<split>/<metric>`)."""
    metrics = validated(module, context.task.metrics)
    return {"metrics": metrics, "main": main_metric(context.task, metrics)}


def validated(module: TaskModule, names: Sequence[str]) -> dict[str, float]:
    """The module's metrics of these names, of further dev splits too."""
    return {key: value for key, value in module.dev_quality.items() if key.rpartition("/")[2] in names}


def check_finite(measured: Measured, where: str) -> None:
    """Raises InputError for the first number of a student's quality or cost that is not finite."""
    for key, value in leaves({name: measured[name] for name in ("metrics", "fidelity", "cost")}):
        if isinstance(value, float) and not math.isfinite(value):
            constant = ": all predictions are equal, so there is no correlation" * key.startswith("metrics.")
            raise InputError(f"{where}: {key} is {value}{constant}; compress less or train longer, in a new run.dir")


def check_teacher(context: RunContext, measured: Measured) -> None:
    """Raises InputError for a teacher no better than a constant prediction: without correlation, or as accurate as the
    majority class (of own data: by their main metric). Correct predictions are compared as whole numbers."""
    task, metrics = context.task, measured["metrics"]
    labels = context.raw.splits[task.dev_splits[0]].labels
    if task.regression or (task.name == CUSTOM and task.main[0] != "accuracy"):
        name = task.main[0] if task.name == CUSTOM else "pearson"
        found, same = metrics[name], 0.0 if task.regression else of_majority(name, labels, task.num_labels)
        told, alone = f"{found:.3f}", f"{same:.3f}"
    else:
        name, found = "accuracy", round(metrics["accuracy"] * len(labels))
        same = max(map(labels.count, set(labels)))
        told, alone = f"{found / len(labels):.3f} ({found} of {len(labels)} correct)", f"{same}"
    if not found > same:
        scale = "scale the labels to a deviation near 1, " * (task.regression and pstdev(labels) > WIDE)
        raise InputError(
            f"the teacher's {name} on {task.name} is {told}, no better than a constant prediction ({alone}); nothing "
            f"can be distilled from it: {scale}train it longer or give a better teacher.checkpoint, in a new run.dir"
        )
