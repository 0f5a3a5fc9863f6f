"""The final student and its teacher on the first dev split: predictions, energy by layer, spikes of a few sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spikeprune.cost.energy_models import ENERGY_MODELS
from spikeprune.cost.kinds import Operations
from spikeprune.data.batching import Encoded
from spikeprune.data.tokenizer import load_tokenizer
from spikeprune.errors import InputError
from spikeprune.experiment.build import arithmetic
from spikeprune.experiment.context import RunContext
from spikeprune.experiment.page_data import predictions
from spikeprune.experiment.page_data.raster import raster
from spikeprune.experiment.run_directory import RunDirectory
from spikeprune.models.inference import infer
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.outputs import INPUTS
from spikeprune.models.shape import student_network, student_operations
from spikeprune.models.teacher import Teacher

SHOWN = 3  # sentences of the dev split whose spikes are shown
SHORT = 24  # tokens of one that is chosen


@dataclass(frozen=True)
class Sentence:
    """A text, or a pair, whose spikes are shown, with its label where the dev split tells it."""

    texts: tuple[str, ...]
    label: float | None = None


def examine(
    context: RunContext,
    directory: RunDirectory,
    student: SpikingBert,
    teacher: Teacher,
    sentences: Sequence[Sentence],
) -> dict[str, Any]:
    """`predictions`, `energy` and `spikes` of the page. Raises InputError for sentences that do not fit the task."""
    device = arithmetic.device(context.config)
    split = context.task.dev_splits[0]
    encoded, raw = context.data.encoded[split], context.raw.splits[split]
    texts = raw.texts()
    sentences = sentences or [Sentence(texts[i], raw.labels[i]) for i in short_rows(encoded)]
    spikes = rasters(student.to(device), directory, sentences, context)
    size = context.config.data.eval_batch_size
    own, theirs, operations = run_through(student, teacher.to(device), encoded, size, device)
    return {
        "predictions": {
            **compared(own, theirs, encoded.labels, texts),
            "labels": None if context.task.labels is None else list(context.task.labels),
            "split": split,
        },
        "energy": energy_by_layer(student, operations),
        "spikes": spikes,
    }


@torch.no_grad()
def run_through(
    student: SpikingBert, teacher: Teacher, data: Encoded, batch_size: int, device: torch.device
) -> tuple[Tensor, Tensor, Operations]:
    """Logits of student and teacher, float64 `[S, C]` in the split's order, and the student's operations."""
    order = data.lengths.argsort(stable=True)
    own, theirs, operations = [], [], None
    for rows in order.split(batch_size):
        batch = data.batch(rows.tolist())
        inputs = [batch[name].to(device) for name in INPUTS]
        outputs = infer(student, *inputs)
        counted = student_operations(student, outputs.counts, inputs[1].sum(1))
        operations = counted if operations is None else operations + counted
        own.append(outputs.logits.double().cpu())
        theirs.append(teacher(*inputs).logits.double().cpu())
    place = order.argsort()
    return torch.cat(own)[place], torch.cat(theirs)[place], operations


def compared(own: Tensor, theirs: Tensor, labels: Tensor, texts: Sequence[tuple[str, ...]]) -> dict[str, Any]:
    """`student` and `teacher`: as `predictions.classified` or, of one output, `regressed`; `worst`: of the student."""
    if own.shape[1] == 1:
        labels = labels.double()
        found = {name: predictions.regressed(x[:, 0], labels) for name, x in (("student", own), ("teacher", theirs))}
        errors = (own[:, 0] - labels).abs()
    else:
        found = {name: predictions.classified(x, labels) for name, x in (("student", own), ("teacher", theirs))}
        errors = predictions.class_errors(own, labels)
    worst = predictions.hardest(errors)
    rows = predictions.described(texts, worst, own, labels)
    beside = predictions.described(texts, worst, theirs, labels)
    return {**found, "worst": [{**row, "teacher": b["prediction"]} for row, b in zip(rows, beside, strict=True)]}


def energy_by_layer(student: SpikingBert, operations: Operations) -> dict[str, Any]:
    """Of each energy model: pJ of a mean sentence by kind, `rows` of the embedding, each layer and the head, and what
    the model counts."""
    network, found = student_network(student, operations), {}
    for name, model in ENERGY_MODELS.items():
        rows = {kind: (pj / operations.samples).tolist() for kind, pj in model.energy(network).items()}
        facts = {"counted": model.counted, "left_out": model.left_out, "source": model.source}
        found[name] = {"rows": rows, **facts}
    return {"models": found}


def short_rows(data: Encoded) -> list[int]:
    """The first sentences of the split that are short enough to be read at a glance, or its shortest."""
    return (data.lengths <= SHORT).nonzero()[:SHOWN, 0].tolist() or [int(data.lengths.argmin())]


def rasters(
    student: SpikingBert, directory: RunDirectory, sentences: Sequence[Sentence], context: RunContext | None = None
) -> list[dict[str, Any]]:
    """Raises InputError for a sentence where the task has pairs, and for one without a word."""
    tokenizer = load_tokenizer(str(directory.stage("teacher")))
    pair = None if context is None else context.task.pair
    length = student.values["positions"] if context is None else context.config.data.max_length
    found = []
    for sentence in sentences:
        if pair is not None and len(sentence.texts) != 1 + pair or len(sentence.texts) > 2:
            wanted = "two sentences with a tab between them" if pair else "one sentence, without a tab"
            raise InputError(f"--text {sentence.texts[0]!r}: the task reads {wanted}")
        if not all(text.strip() for text in sentence.texts):
            raise InputError("--text: is empty; write a sentence")
        found.append({**raster(student, tokenizer, sentence.texts, length), "label": sentence.label})
    return found
