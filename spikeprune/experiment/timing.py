"""Milliseconds that a sentence takes on this machine, in PyTorch: the student and dense networks of its task."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from torch import Tensor

from spikeprune.experiment.context import RunContext
from spikeprune.experiment.summary import hardware
from spikeprune.models.compaction import compact
from spikeprune.models.inference import in_closed_form
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.outputs import INPUTS
from spikeprune.models.teacher import Teacher

Batch = dict[str, Tensor]
Form = Callable[[Batch], Any]  # a network that is timed, as a function of one sentence
SENTENCES = 24  # spread evenly over the lengths of the dev split
ROUNDS = 3


def measured_ms(context: RunContext, student: SpikingBert, teacher: Teacher) -> dict[str, Any]:
    """`{"student", "teacher", "masked_teacher": ms of a sentence, "sentences", "machine"}`: batch 1, one thread, on the
    CPU, the median over rounds of the mean over sentences. The student is compacted and moved to the CPU, the teacher
    too; the masked teacher is the compacted student with real activations, in the same code as the student."""
    data = context.data.val_dataloader()[0].data
    order = data.lengths.argsort(stable=True)
    rows = order[torch.linspace(0, len(order) - 1, min(SENTENCES, len(order))).round().long()].tolist()
    batches = [{name: x for name, x in data.batch([row], pad_to=1).items() if name in INPUTS} for row in rows]
    with one_thread():
        found = {name: milliseconds(form, batches) for name, form in forms(student, teacher).items()}
        return {**found, "sentences": len(batches), "machine": hardware(torch.device("cpu"))}


def forms(student: SpikingBert, teacher: Teacher) -> dict[str, Form]:
    """The networks that are timed. A further form, such as an exported one, is a function of one sentence's inputs."""
    small, dense = compact(student.cpu().eval()), teacher.cpu().eval()
    masked = SpikingBert(**{**small.values, **UNQUANTIZED, **REAL}).eval()  # of random weights
    return {"student": answers(small), "teacher": lambda batch: dense(**batch), "masked_teacher": answers(masked)}


UNQUANTIZED = {"weights": "float", "packed": False, "fold": False, "sparse": False}
REAL = {"spikes": "dense", "coding": "accumulate", "query": "real", "leak": 1.0, "t_steps": 1}
REAL |= {"feedback": False, "dead_zone": False}


def answers(network: SpikingBert) -> Form:
    mode = "equilibrium" if in_closed_form(network, stepwise=False) else "spiking"
    return lambda batch: network(*(batch[name] for name in INPUTS), mode=mode, scores=False)


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
