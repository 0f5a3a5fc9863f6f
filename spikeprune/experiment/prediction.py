"""Predictions of a run's network for any number of texts, in order and in bounded memory.

Texts are taken a window at a time, tokenized and truncated as in training, sorted by length into batches, and given
back in the order in which they came.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spikeprune.config.load import read_resolved
from spikeprune.config.names import RUNTIMES
from spikeprune.config.schema import Config
from spikeprune.config.tasks import Task
from spikeprune.cost.dense import dense
from spikeprune.cost.energy_models import ENERGY_MODELS
from spikeprune.cost.network import Network, dense_network
from spikeprune.cost.summary import latency_steps
from spikeprune.data.batching import encode
from spikeprune.data.cells import sentence
from spikeprune.data.tokenizer import load_tokenizer
from spikeprune.errors import InputError, known
from spikeprune.experiment import processes
from spikeprune.experiment.build import arithmetic
from spikeprune.experiment.build.networks import dense_shape
from spikeprune.experiment.checkpoints import load_compact, load_student
from spikeprune.experiment.run_directory import RunDirectory
from spikeprune.experiment.terminal import quiet
from spikeprune.kernels import attach
from spikeprune.models.compaction import compact
from spikeprune.models.inference import infer
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.outputs import Outputs, inputs_of
from spikeprune.models.shape import student_network, student_operations
from spikeprune.models.teacher import Teacher
from spikeprune.runtime import Session, to_bytes
from spikeprune.runtime.inference import infer as run_program

WINDOW = 2048  # texts that are sorted by length together
Texts = tuple[str, ...]  # one sentence, or the two of a pair
Example = tuple[str, Texts]  # where it stands, for messages, and its texts


class Cost(NamedTuple):
    """Of one example. A dense teacher has no additions and no steps."""

    additions: float
    energy_pj: float
    steps: int


@dataclass(frozen=True)
class Prediction:
    """Of one example: the name of a class and the probability of each, or the number of a regression without them."""

    texts: Texts
    prediction: str | float
    probabilities: tuple[float, ...] | None
    cost: Cost | None

    def record(self, task: Task) -> dict[str, Any]:
        """As an object of a JSON lines file: texts by their columns, `prediction`, `probabilities`, costs."""
        found = {**dict(zip(task.columns, self.texts, strict=True)), "prediction": rounded(self.prediction)}
        if self.probabilities is not None:
            found["probabilities"] = dict(zip(task.labels, map(rounded, self.probabilities), strict=True))
        return {**found, **{name: rounded(x) for name, x in (self.cost._asdict() if self.cost else {}).items()}}


def rounded(value: Any) -> Any:
    """A float to six digits, which is more than float32 sums agree on between batches."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


@dataclass(frozen=True)
class Predictor:
    """A run's network, and what its texts have to go through."""

    config: Config
    task: Task
    tokenizer: Any
    device: torch.device
    forward: Callable[[dict[str, Tensor]], Outputs]
    example: Callable[[Outputs, Tensor, int], Network]  # the batch' i-th with its work, from the lengths [B]
    steps: int  # until the logits


def open_predictor(
    run_dir: str | Path, stage: str | None = None, compacted: bool = False, runtime: str = "torch"
) -> Predictor:
    """The network of a finished stage, by default the last one of the student, or with `compacted` the one that
    `spikeprune compact` left. `runtime`: torch, or c for the C program (`spikeprune/runtime`). The run's data are not
    needed. Raises InputError."""
    known("runtime", runtime, RUNTIMES)
    quiet()
    directory = RunDirectory.open(run_dir)
    config = read_resolved(directory.config)
    if config.run.accelerator == "gpu":
        config.run.accelerator = "auto"  # what was trained on a GPU may be used without one
    config.run.kernels = "torch" if config.run.kernels == "torch" else "auto"
    processes.use_threads(config.run)
    device = arithmetic.device(config) if runtime == "torch" else torch.device("cpu")
    name = stage or directory.last_student()
    folder = directory.compact if compacted else directory.stage(name)
    if compacted or name != "teacher":
        student = load_compact(directory) if compacted else load_student(directory, name)
        student = student.to(device).eval()
        how = of_student(student, arithmetic.kernels(config)) if runtime == "torch" else of_program(compact(student))
    elif runtime != "torch":
        raise InputError(f"--runtime {runtime}: runs spiking students and not the teacher; name another stage")
    else:
        directory.verified(name)
        how = of_teacher(Teacher.load(folder, classes=directory.task().num_labels).freeze().to(device))
    return Predictor(config, directory.task(), load_tokenizer(str(folder)), device, *how)


def of_student(student: SpikingBert, backend: str) -> tuple[Callable, Callable, int]:
    attach(student, backend)
    return counted(student, lambda batch: infer(student, **inputs_of(batch)))


def of_program(student: SpikingBert) -> tuple[Callable, Callable, int]:
    """The C program, one sentence at a time."""
    session = Session(to_bytes(student))
    return counted(student, lambda batch: run_program(session, **inputs_of(batch)))


def counted(student: SpikingBert, forward: Callable[[dict[str, Tensor]], Outputs]) -> tuple[Callable, Callable, int]:
    def example(outputs: Outputs, lengths: Tensor, i: int) -> Network:
        counts = {spiking_layer: spikes[:, i : i + 1] for spiking_layer, spikes in outputs.counts.items()}
        return student_network(student, student_operations(student, counts, lengths[i : i + 1]))

    return forward, example, latency_steps(student.steps, student.coding)


def of_teacher(teacher: Teacher) -> tuple[Callable, Callable, int]:
    shape = dense_shape(teacher.encoder_config, teacher.bert.config.num_labels)

    def example(outputs: Outputs, lengths: Tensor, i: int) -> Network:
        return dense_network(dense(lengths[i : i + 1], shape=shape), shape=shape)

    return torch.no_grad()(lambda batch: teacher(**inputs_of(batch))), example, 0


def predictions(
    predictor: Predictor,
    examples: Iterable[Example],
    cost: bool = False,
    was_cut: Callable[[int], None] = lambda count: None,
) -> Iterator[Prediction]:
    """One for each example, in order, read and predicted a window at a time. `cost`: with each one's own costs, counted
    from its spikes. `was_cut` is told how many texts of each window were cut to data.max_length. Raises InputError for
    a text of which the tokenizer leaves nothing."""
    rest = iter(examples)
    while window := list(islice(rest, WINDOW)):
        yield from _of_window(predictor, window, cost, was_cut)


def _of_window(
    predictor: Predictor, window: Sequence[Example], cost: bool, was_cut: Callable[[int], None]
) -> list[Prediction]:
    places, texts = zip(*window, strict=True)
    first, *second = zip(*texts, strict=True)
    data = encode(
        predictor.tokenizer,
        first,
        second[0] if second else None,
        max_length=predictor.config.data.max_length,
        place=places.__getitem__,
    )
    was_cut(data.truncated)
    found: list[Prediction | None] = [None] * len(window)
    for rows in data.lengths.argsort(stable=True).split(predictor.config.data.eval_batch_size):
        batch = {name: x.to(predictor.device) for name, x in data.batch(rows).items()}
        outputs, lengths = predictor.forward(batch), batch["attention_mask"].sum(1)
        scores = outputs.logits.double() if predictor.task.regression else outputs.logits.double().softmax(-1)
        for i, (row, score) in enumerate(zip(rows.tolist(), scores.tolist(), strict=True)):
            costs = _cost(predictor, predictor.example(outputs, lengths, i)) if cost else None
            found[row] = _prediction(predictor.task, texts[row], score, costs)
    return found


def _cost(predictor: Predictor, example: Network) -> Cost:
    energy = ENERGY_MODELS[predictor.config.cost.model].per_sample(example)
    return Cost(example.ops.per_sample()["ac"], energy, predictor.steps)


def _prediction(task: Task, texts: Texts, scores: list[float], cost: Cost | None) -> Prediction:
    """`scores`: the probabilities, or the number of a regression alone."""
    if task.regression:
        return Prediction(texts, scores[0], None, cost)
    return Prediction(texts, task.labels[scores.index(max(scores))], tuple(scores), cost)


def predict(
    run: str | Path,
    texts: Iterable[str | tuple[str, str]],
    *,
    stage: str | None = None,
    compacted: bool = False,
    cost: bool = False,
    runtime: str = "torch",
) -> Iterator[dict[str, Any]]:
    """Predictions of a run's network, as `spikeprune predict` writes them into a JSON lines file.

    Args:
        run: a run's directory.
        texts: sentences, or pairs of them where the task has pairs.
        stage: a finished stage, by default the last one of the student.
        compacted: the model that `spikeprune compact` wrote.
        cost: with the additions, energy (pJ) and time steps of each.
        runtime: torch, or c for the C program.

    Raises `errors.InputError` for a run without a finished stage, and for texts that are empty or not of the task.

    Example: `[found["prediction"] for found in predict("runs/sst2-tiny-s0", ["a fine film"])]`
    """
    if isinstance(texts, str):
        raise InputError("texts: is one string; give a list of texts")
    predictor = open_predictor(run, stage, compacted, runtime)
    found = predictions(predictor, (checked(predictor.task, i, text) for i, text in enumerate(texts, 1)), cost)
    return (prediction.record(predictor.task) for prediction in found)


def checked(task: Task, number: int, texts: str | Sequence[str]) -> Example:
    """The `number`-th of the texts given. Raises InputError where they are empty, or more or fewer than the task's."""
    alone, place = isinstance(texts, str) or not isinstance(texts, Sequence), f"text {number}"
    given = (texts,) if alone else tuple(texts)
    if len(given) != len(task.columns):
        count = "two texts" if task.pair else "one text"
        raise InputError(f"{place}: has {len(given)}; the task has {count} an example ({', '.join(task.columns)})")
    return read_example(task, place, given)


def read_example(task: Task, place: str, texts: Sequence[Any]) -> Example:
    """Without blanks around the texts. Raises InputError, which names the `place`, for one that is missing or empty."""
    try:
        return place, tuple(sentence(text, may_be_empty=task.empty_sentences) for text in texts)
    except ValueError as error:
        raise InputError(f"{place}: {error}; correct it or drop it") from None
