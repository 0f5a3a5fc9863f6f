"""Trains that become shorter for good: thresholds that follow, against theory and in students, and set back exactly."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pruning import batches, loss_of, make
from test_joint import budget
from test_schedule import play

from spikeprune.callbacks.temporal import TemporalPruning
from spikeprune.compress.stats import loss_at, temporal_statistics
from spikeprune.compress.trains import Trains
from spikeprune.models.student import Student
from spikeprune.spiking.coding import CODINGS
from spikeprune.spiking.neurons import NEURONS, settle


def thetas(student: Student) -> dict[str, torch.Tensor]:
    return {name: site.theta.detach().clone() for name, site in student.sites().items()}


def place(name: str) -> int:
    return 0 if name == "embedding" else int(name.split(".")[1]) + 1


def roots(student: Student, before: dict[str, torch.Tensor], steps: list[int]) -> None:
    """Each theta is that before, times the root of what has become of its place's steps."""
    for name, theta in thetas(student).items():
        share = student.steps[place(name)] / steps[place(name)]
        torch.testing.assert_close(theta, before[name] * math.sqrt(share))


# -------------------------------------------------------------------------------------------------------------- theory


@pytest.mark.parametrize(("before", "after"), [(t, s) for t in range(2, 6) for s in range(1, t)])
def test_the_root_loses_less_of_a_gaussian_than_to_keep_theta_or_the_spike(before, after) -> None:
    x = torch.linspace(-5, 5, 4001).double()
    weight = torch.exp(-(x**2) / 2)

    def error(theta: float, steps: int) -> float:
        said = theta * settle(x, torch.tensor([theta]).double(), steps, NEURONS["ternary"], 1.0)
        return ((weight * (said - x) ** 2).sum() / weight.sum()).item()

    best = min((error(theta, before), theta) for theta in torch.arange(1.0, 4.0, 0.02).tolist())[1]
    root, stays, spike = (error(best * share, after) for share in (math.sqrt(after / before), 1.0, after / before))
    assert root < stays and root < spike


# ------------------------------------------------------------------------------------------------------------ students


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=4))
def test_only_the_last_lengths_count_and_the_first_come_back_exactly(ways) -> None:
    student = make(0, (3, 4, 2))
    before, trains = thetas(student), Trains(student, follow=True)
    for steps in ways:
        trains.set(list(steps))
        assert student.steps == list(steps)
        roots(student, before, [3, 4, 2])
    trains.set([3, 4, 2])
    assert all(torch.equal(theta, before[name]) for name, theta in thetas(student).items())


@pytest.mark.parametrize("coding", CODINGS)
def test_thresholds_stay_unless_they_are_to_follow_levels(coding) -> None:
    for follow in (False, True):
        student = make(0, (3, 4, 2), coding=coding)
        before = thetas(student)
        Trains(student, follow=follow).set([1, 4, 1])
        same = {name for name, theta in thetas(student).items() if torch.equal(theta, before[name])}
        moved = follow and coding == "accumulate"
        assert same == {name for name in before if not moved or place(name) == 1}


def test_what_stays_is_not_written_again() -> None:
    """Matrices that are packed or folded are made anew where a parameter's version says that it has changed."""
    student = make(0, (3, 4, 2))
    trains, versions = Trains(student, follow=True), {n: p._version for n, p in student.named_parameters()}
    trains.set([3, 4, 2])
    trains.set([3, 4, 1])
    written = {n for n, p in student.named_parameters() if p._version != versions[n]}
    assert written and all(n.startswith("layers.1.") and n.endswith("log_theta") for n in written)


# ------------------------------------------------------------------------------------------------------------ decisions


def test_a_loss_asked_about_has_the_thresholds_that_would_follow() -> None:
    student, data = make(4, (3, 4, 2)), batches((3, 2))
    before = thetas(student)
    stats = temporal_statistics(student, data, loss_of, trains=Trains(student, follow=True))
    found = stats.loss_of([2, 4, 1])
    assert all(torch.equal(theta, before[name]) for name, theta in thetas(student).items())
    assert student.steps == [3, 4, 2]
    other = make(4, (3, 4, 2))
    with torch.no_grad():
        for name, site in other.sites().items():
            site.log_theta += {0: math.log(2 / 3), 1: 0.0, 2: math.log(1 / 2)}[place(name)] / 2
    assert found == pytest.approx(loss_at(other, [2, 4, 1], data, loss_of).item())
    assert found != pytest.approx(loss_at(student, [2, 4, 1], data, loss_of).item())


@pytest.mark.parametrize("criterion", ["uniform", "sensitivity"])
@pytest.mark.parametrize("thresholds", ["stay", "follow"])
def test_temporal_pruning_over_epochs(criterion, thresholds) -> None:
    student = make(1, (6, 8, 7))
    before = thetas(student)
    options = {"t_steps": 3, "criterion": criterion, "batches": 2, "batch_size": 3, "seed": 5, "begin": 0, "end": 2}
    play(TemporalPruning(**options, thresholds=thresholds), student, 4)
    assert sum(student.steps) == 9
    roots(student, before, [6, 8, 7] if thresholds == "follow" else student.steps)


def test_a_budget_leaves_thresholds_as_its_steps_say() -> None:
    """After all that it tries on the way, down and up again, and by the cost of what it has left."""
    student = make(0)
    before, mine = thetas(student), budget(student, follow=True)
    start, lowest = mine.value, mine.lowest()
    assert mine.candidates(1.0) and student.steps == [3, 4, 2]
    assert all(torch.equal(theta, before[name]) for name, theta in thetas(student).items())
    goal = lowest + 0.2 * (start - lowest)
    mine.lower_to(goal)
    assert mine.raise_to(goal) <= goal and student.steps != [3, 4, 2]
    roots(student, before, [3, 4, 2])
    assert mine.value == mine.meter.value(student)
