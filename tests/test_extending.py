"""Criteria, a neuron, a loss term, a task and a callback, added as docs/extending.md says: one function, one entry."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import test_contracts
import torch
from students import CODINGS, make, sentences
from test_public_api import Own, fit
from tiny_data import raw_of

from spikeprune import SpatialPruning, TemporalPruning, count_operations
from spikeprune.config.tasks import TASKS, Task
from spikeprune.models.shape import student_shape
from spikeprune.pruning.criteria import CRITERIA, TEMPORAL_CRITERIA
from spikeprune.pruning.statistics import Statistics, TemporalStatistics
from spikeprune.snn.neurons import NEURONS, Neuron
from spikeprune.training.callbacks.schedule import EpochSchedule
from spikeprune.training.metrics import main_metric, task_metrics
from spikeprune.training.objective import SENTENCES, TERMS, Computed, LossWeights, Objective, Term
from spikeprune.training.protocol import student_of


def test_a_spatial_criterion(monkeypatch) -> None:
    def last_units(stats: Statistics) -> tuple[torch.Tensor, torch.Tensor]:
        """The later a unit, the higher its score."""
        return tuple(torch.arange(mask.shape[1]).expand_as(mask).to(mask) for mask in (stats.heads, stats.ffn))

    monkeypatch.setitem(CRITERIA, "last_units", last_units)
    student = make(dtype=torch.float32)
    fit(Own(student), SpatialPruning(heads=1 / 3, ffn=10 / 37, criterion="last_units", scope="layer"))
    assert student.heads.tolist() == [[0, 0, 1]] * 2
    assert student.ffn.tolist() == [[0] * 27 + [1] * 10] * 2


def test_a_temporal_criterion(monkeypatch) -> None:
    def embedding_first(stats: TemporalStatistics, total: int) -> list[int]:
        """Removes steps from the lowest layer that has more than one."""
        steps = list(stats.t_steps)
        while sum(steps) > max(total, len(steps)):
            steps[next(i for i, t in enumerate(steps) if t > 1)] -= 1
        return steps

    monkeypatch.setitem(TEMPORAL_CRITERIA, "embedding_first", embedding_first)
    student = make(t_steps=(3, 4, 2), dtype=torch.float32)
    fit(Own(student), TemporalPruning(t_steps=2, criterion="embedding_first"))
    assert student.steps == [1, 3, 2]


@pytest.mark.parametrize("coding", CODINGS)
def test_a_neuron(coding, monkeypatch) -> None:
    def hard_ternary_step(x, u, theta, leak):
        """Spikes in {-1, 0, 1} at three quarters of theta, soft reset."""
        u = leak * u + x
        s = (u >= 0.75 * theta).to(u.dtype) - (u <= -0.75 * theta).to(u.dtype)
        return s, u - theta * s

    monkeypatch.setitem(NEURONS, "hard_ternary", Neuron(step=hard_ternary_step, start=0.0, low=-1.0, settled=None))
    test_contracts.test_simulated_and_in_closed_form("hard_ternary", coding, "spikes")
    test_contracts.test_trains_with_the_spiking_forward("hard_ternary", coding, "spikes")
    test_contracts.test_padding_and_neighbours_change_nothing("hard_ternary", coding, "spikes")
    assert count_operations(make(spikes="hard_ternary", coding=coding), sentences())["ac"] > 0


def test_a_loss_term(monkeypatch) -> None:
    def confident(objective: Objective, x: Computed) -> torch.Tensor:
        """Mean entropy of the student's predictions."""
        return torch.distributions.Categorical(logits=x.outputs.logits.float()).entropy().mean()

    @dataclass
    class Weights(LossWeights):
        confident: float = 0.5

    monkeypatch.setitem(TERMS, "confident", Term(confident, SENTENCES))
    student, batch = make(), sentences()
    objective = Objective(Weights(), layer_map=[0, 1], shape=student_shape(student), regression=False)
    outputs = student(**batch)
    terms = objective(batch, outputs, student, objective.teacher_outputs(batch, teacher=None))
    probabilities = outputs.logits.softmax(-1)
    entropy = -(probabilities * probabilities.log()).sum(-1).mean().item()
    assert list(terms) == ["confident"] and objective.reads == set()
    assert objective.total(terms).item() == pytest.approx(entropy / 2)


def test_a_task(tmp_path, monkeypatch) -> None:
    trec = Task(
        name="trec",
        columns=("text",),
        folder="TREC",
        tsv_columns=("question",),
        tsv_label="coarse",
        labels=("number", "place", "person"),
        tsv_labels=("NUM", "LOC", "HUM"),
        metrics=("accuracy",),
        main=("accuracy",),
    )
    monkeypatch.setitem(TASKS, "trec", trec)
    (tmp_path / "TREC").mkdir()
    rows = ["question\tcoarse", "How many ?\tNUM", "Where is it ?\tLOC", "Who wrote this ?\tHUM"]
    for name in ("train", "dev"):
        (tmp_path / "TREC" / f"{name}.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    raw = raw_of("trec", "dir", tmp_path)
    assert raw.splits["train"].labels == raw.splits["validation"].labels == [0, 1, 2]
    assert raw.splits["train"].first == ["How many ?", "Where is it ?", "Who wrote this ?"]
    metric = task_metrics(trec)
    metric.update(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 2]))
    assert main_metric(trec, metric.compute()) == pytest.approx(2 / 3)


class MaskFirstNeurons(EpochSchedule):
    """Masks the first `count` neurons of each layer, a growing part of them in each deciding epoch."""

    def __init__(self, count: int, *, begin: int = 0, end: int | None = None):
        super().__init__(begin=begin, end=end)
        self.count = count

    def decide(self, trainer, module, progress) -> None:
        student_of(module).ffn[:, : round(progress * self.count)] = 0


def test_a_callback() -> None:
    student = make(dtype=torch.float32)
    callback = MaskFirstNeurons(8)
    fit(Own(student), callback, epochs=4)
    assert (callback.begin, callback.end, callback.decided) == (0, 2, 2)  # half of four epochs, and never the last
    assert not student.ffn[:, :8].any() and student.ffn[:, 8:].all()
    again = MaskFirstNeurons(8, end=2)
    again.load_state_dict(callback.state_dict())
    student.ffn.fill_(1)
    fit(Own(student), again, epochs=3)  # a resumed run does not decide twice
    assert student.ffn.all()
