"""Milliseconds that a sentence takes on this machine: the student and dense networks of its task, in PyTorch, in
onnxruntime and in C. A further form is a function and an entry of FORMS."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Any

import torch
from torch import Tensor

from spikeprune.errors import InputError
from spikeprune.experiment.context import RunContext
from spikeprune.experiment.summary import hardware
from spikeprune.models.compaction import compact
from spikeprune.models.inference import in_closed_form
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.outputs import INPUTS, inputs_of
from spikeprune.models.teacher import Teacher
from spikeprune.runtime import Session, onnx_graph, to_bytes

Batch = dict[str, Tensor]
Form = Callable[[Batch], Any]  # a network that is timed, as a function of one sentence
SENTENCES = 24  # spread evenly over the lengths of the dev split
ROUNDS = 3


@dataclass(frozen=True)
class Networks:
    """The compacted student and the teacher, on the CPU in evaluation mode."""

    student: SpikingBert
    teacher: Teacher
    example: tuple[Tensor, ...]  # INPUTS of two sentences, [2, N] each, as long as any that is timed

    @cached_property
    def dense(self) -> bytes:
        """The teacher as an ONNX file."""
        onnx_graph.check_installed()
        return onnx_graph.dense(self.teacher, self.example)


def measured_ms(context: RunContext, student: SpikingBert, teacher: Teacher) -> dict[str, Any]:
    """`{"forms": [{"network", "runs_in", "ms" or "absent"}], "sentences", "machine"}`: batch 1, one thread, on the CPU,
    the median over rounds of the mean over sentences; `absent` is the reason why a form cannot be made. The student is
    moved to the CPU, the teacher too. Making the ONNX files takes longer than timing them."""
    data = context.data.val_dataloader()[0].data
    order = data.lengths.argsort(stable=True)
    rows = order[torch.linspace(0, len(order) - 1, min(SENTENCES, len(order))).round().long()].tolist()
    batches = [{name: x for name, x in data.batch([row], pad_to=1).items() if name in INPUTS} for row in rows]
    pair = data.batch([rows[0], rows[-1]])
    example = tuple(pair[name] for name in INPUTS)
    networks = Networks(compact(student.cpu().eval()), teacher.cpu().eval(), example)
    with one_thread():
        forms = [timed(networks, name, program, batches) for name, program in FORMS]
    return {"forms": forms, "sentences": len(batches), "machine": hardware(torch.device("cpu"))}


def timed(networks: Networks, name: str, program: str, batches: Sequence[Batch]) -> dict[str, Any]:
    facts = {"network": name, "runs_in": program}
    try:
        return {**facts, "ms": milliseconds(FORMS[name, program](networks), batches)}
    except InputError as error:
        return {**facts, "absent": str(error)}


# ------------------------------------------------------------------------------------------------------------- forms


def student_in_pytorch(networks: Networks) -> Form:
    return in_pytorch(networks.student)


def student_in_onnxruntime(networks: Networks) -> Form:
    onnx_graph.check_exportable(networks.student)
    return in_onnxruntime(onnx_graph.logits_alone(networks.student, networks.example))


def student_in_c(networks: Networks) -> Form:
    session = Session(to_bytes(networks.student), max_tokens=networks.example[0].shape[1])
    return lambda batch: session.run(batch["input_ids"][0].numpy(), batch["token_type_ids"][0].numpy())


def teacher_in_pytorch(networks: Networks) -> Form:
    return lambda batch: networks.teacher(**batch)


def teacher_in_onnxruntime(networks: Networks) -> Form:
    return in_onnxruntime(networks.dense)


def int8_teacher_in_onnxruntime(networks: Networks) -> Form:
    return in_onnxruntime(onnx_graph.in_int8(networks.dense))


def masked_teacher_in_pytorch(networks: Networks) -> Form:
    """The compacted student with real activations and random weights, in the same code as the student."""
    return in_pytorch(SpikingBert(**{**networks.student.values, **UNQUANTIZED, **REAL}).eval())


FORMS: dict[tuple[str, str], Callable[[Networks], Form]] = {  # by network and the program that runs it
    ("student", "PyTorch"): student_in_pytorch,
    ("student", "onnxruntime"): student_in_onnxruntime,
    ("student", "C"): student_in_c,
    ("teacher", "PyTorch"): teacher_in_pytorch,
    ("teacher", "onnxruntime"): teacher_in_onnxruntime,
    ("teacher_int8", "onnxruntime"): int8_teacher_in_onnxruntime,
    ("masked_teacher", "PyTorch"): masked_teacher_in_pytorch,
}


UNQUANTIZED = {"weights": "float", "packed": False, "fold": False, "sparse": False}
REAL = {"spikes": "dense", "coding": "accumulate", "query": "real", "leak": 1.0, "t_steps": 1}
REAL |= {"feedback": False, "dead_zone": False}


def in_pytorch(network: SpikingBert) -> Form:
    mode = "equilibrium" if in_closed_form(network, stepwise=False) else "spiking"
    return lambda batch: network(**inputs_of(batch), mode=mode, scores=False)


def in_onnxruntime(model: bytes) -> Form:
    session = onnx_graph.session(model, threads=1)
    names = [given.name for given in session.get_inputs()]  # a network may read no segments
    return lambda batch: session.run(None, {name: batch[name].numpy() for name in names})


@torch.no_grad()
def milliseconds(form: Form, batches: Sequence[Batch]) -> float:
    for batch in batches[:3]:  # warm up
        form(batch)
    rounds = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        for batch in batches:
            form(batch)
        rounds.append((time.perf_counter() - begin) / len(batches))
    return 1e3 * median(rounds)


@contextmanager
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
