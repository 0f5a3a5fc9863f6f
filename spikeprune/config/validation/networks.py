"""The networks: the teacher's and the student's shapes, the student's neurons, its early answers."""

from __future__ import annotations

from collections.abc import Iterator

from spikeprune.config.derived import is_int, is_ints, student_layers
from spikeprune.config.schema import Config
from spikeprune.config.tasks import TASKS
from spikeprune.errors import Problem


def teacher(config: Config) -> Iterator[Problem]:
    t = config.teacher
    if t.checkpoint is None and t.heads > 0 and t.hidden % t.heads:
        yield ("teacher.heads", "teacher.hidden"), f"teacher.heads = {t.heads}: must divide teacher.hidden = {t.hidden}"


def student(config: Config) -> Iterator[Problem]:
    s, total = config.student, config.teacher.layers
    known = config.teacher.checkpoint is None
    keys = ("student.layers", "teacher.layers")
    if is_ints(s.layers, 0) and s.layers != sorted(set(s.layers)):
        yield keys, f"student.layers = {s.layers}: must name each layer once, in rising order"
    elif known and is_ints(s.layers, 0) and s.layers[-1] >= total:
        yield keys, f"student.layers = {s.layers}: the teacher's layers are 0 to {total - 1}"
    elif known and is_int(s.layers, 1) and s.layers > total:
        yield keys, f"student.layers = {s.layers}: the teacher has {total}"
    if s.coding == "per_step" and s.forward == "equilibrium":
        text = "per_step coding has another equilibrium than the formula; set student.forward=spiking"
        yield ("student.forward", "student.coding"), f"student.forward = equilibrium: {text}"
    if s.feedback and s.coding == "accumulate":
        text = "in accumulate the first layer is done before the last begins; use running_mean or per_step"
        yield ("student.feedback", "student.coding"), f"student.feedback = true: {text}"
    yield from _layer_lists(config)


def _layer_lists(config: Config) -> Iterator[Problem]:
    layers, steps, chosen = student_layers(config), config.student.t_steps, config.distill.layer_map
    if layers is None:
        return
    if isinstance(steps, list) and len(steps) != layers + 1:
        text = f"needs {layers + 1} numbers, the embedding's and one for each of {layers} layers; it has {len(steps)}"
        yield ("student.t_steps", "student.layers", "teacher.layers"), f"student.t_steps = {steps}: {text}"
    keys = ("distill.layer_map", "student.layers", "teacher.layers")
    if chosen is not None and len(chosen) != layers:
        yield keys, f"distill.layer_map = {chosen}: needs one teacher layer for each of the student's {layers} layers"
    elif chosen is not None:
        total = config.teacher.layers if config.teacher.checkpoint is None else 10**6
        if not all(0 <= i < total for i in chosen):
            yield keys, f"distill.layer_map = {chosen}: teacher layers are counted from 0 and must exist"


def early_answers(config: Config) -> Iterator[Problem]:
    if config.time.early_exit != "confidence":
        return
    key, instead = "time.early_exit", "use time.early_exit=asr"
    if config.student.coding == "accumulate":
        text = f"the coding accumulate has one answer, at the end; {instead}"
        yield (key, "student.coding"), f"{key} = confidence: {text}"
    if config.task in TASKS and TASKS[config.task].regression:
        text = f"{config.task} is a regression, whose answer has no probability; {instead}"
        yield (key, "task"), f"{key} = confidence: {text}"
