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
from spikeprune.compress.trains import Trains, lasting, loading, width
from spikeprune.models.student import Student
from spikeprune.spiking.coding import CODINGS
from spikeprune.spiking.neurons import NEURONS, settle


def thetas(student: Student) -> dict[str, torch.Tensor]:
    return {name: site.theta.detach().clone() for name, site in student.sites().items()}


def place(name: str) -> int:
    return 0 if name == "embedding" else int(name.split(".")[1]) + 1


def follows(student: Student, before: dict[str, torch.Tensor], steps: list[int]) -> None:
    """Each theta is that before, times what the widths of its place's steps then and now are apart."""
    for name, theta in thetas(student).items():
        share = width(student.steps[place(name)]) / width(steps[place(name)])
        torch.testing.assert_close(theta, before[name] * share)


# -------------------------------------------------------------------------------------------------------------- theory


def said(x: torch.Tensor, theta: float, steps: int) -> torch.Tensor:
    return theta * settle(x, torch.tensor([theta]).double(), steps, NEURONS["ternary"], 1.0)


def gaussian() -> tuple[torch.Tensor, torch.Tensor]:
    """Currents and their weights."""
    x = torch.linspace(-6, 6, 12001).double()
    weight = torch.exp(-(x**2) / 2)
    return x, weight / weight.sum()


@pytest.mark.parametrize(("steps", "spacing"), [(1, 1.224), (2, 0.8430), (3, 0.6508), (4, 0.5338), (5, 0.4546)])
def test_loadings_are_those_of_the_published_quantizers(steps, spacing) -> None:
    """Max 1960, table II: 3, 5, 7, 9 and 11 levels."""
    assert loading(steps) / steps == pytest.approx(spacing, abs=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 16, 125])
def test_no_other_threshold_says_a_gaussian_better_than_the_loading(steps) -> None:
    x, weight = gaussian()

    def error(theta: float) -> float:
        return (weight * (said(x, theta, steps) - x) ** 2).sum().item()

    best = error(loading(steps))
    assert best <= min(error(loading(steps) * share) for share in (0.9, 0.97, 0.99, 1.01, 1.03, 1.1)) * (1 + 1e-6)


def test_thresholds_stay_down_to_six_steps_and_follow_the_loading_below() -> None:
    assert width(16) == width(9) == width(6) > width(5) == loading(5) > width(1) == loading(1)
    student = make(0, (9, 4, 6))
    before, trains = thetas(student), Trains(student, follow=True)
    trains.set([6, 2, 4])
    for name, share in ((n, theta / before[n]) for n, theta in thetas(student).items()):
        expected = {0: 1.0, 1: loading(2) / loading(4), 2: loading(4) / width(6)}[place(name)]
        torch.testing.assert_close(share, torch.full_like(share, expected))


@pytest.mark.parametrize("theta", [1.8, 2.33])
@pytest.mark.parametrize("steps", [2, 3, 4, 6, 8, 12, 16])
def test_of_what_a_step_less_moves_that_share_lasts(steps, theta) -> None:
    """With thresholds that stay, of currents that are far from uniform."""
    x, weight = gaussian()
    full, less = said(x, theta, steps), said(x, theta, steps - 1)
    moved = (weight * (full - less) ** 2).sum()
    worse = (weight * ((less - x) ** 2 - (full - x) ** 2)).sum()
    assert (worse / moved).item() == pytest.approx(lasting(steps), rel=0.2 if steps == 2 else 0.1)


# ------------------------------------------------------------------------------------------------------------ students


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=4))
def test_only_the_last_lengths_count_and_the_first_come_back_exactly(ways) -> None:
    student = make(0, (3, 4, 2))
    before, trains = thetas(student), Trains(student, follow=True)
    for steps in ways:
        trains.set(list(steps))
        assert student.steps == list(steps)
        follows(student, before, [3, 4, 2])
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
            site.log_theta += math.log(width([2, 4, 1][place(name)]) / width([3, 4, 2][place(name)]))
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
    follows(student, before, [6, 8, 7] if thresholds == "follow" else student.steps)


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
    follows(student, before, [3, 4, 2])
    assert mine.value == mine.meter.value(student)
