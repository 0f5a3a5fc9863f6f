"""The rules for time steps, by hand and against brute force."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pruning import batches, inputs, known, loss_of, make

from spikeprune.pruning.criteria import TEMPORAL_CRITERIA, convergence, sensitivity, uniform
from spikeprune.pruning.statistics import convergence_profile, loss_at, temporal_statistics
from spikeprune.snn.coding import CODINGS


@st.composite
def trains(draw):
    steps = draw(st.lists(st.integers(1, 9), min_size=2, max_size=6))
    errors = st.floats(0, 2, allow_nan=False)
    profile = [torch.tensor([*draw(st.lists(errors, min_size=t - 1, max_size=t - 1)), 0.0]).double() for t in steps]
    return steps, draw(st.integers(0, sum(steps) + 3)), profile


@pytest.mark.parametrize("name", TEMPORAL_CRITERIA)
@given(trains())
def test_contract_of_temporal_criteria(name, case) -> None:
    steps, total, profile = case
    before = list(steps)

    def loss(t_steps) -> float:  # what each layer lacks at the steps it has
        assert min(t_steps) >= 1
        return sum(layer[t - 1].item() for layer, t in zip(profile, t_steps, strict=True))

    found = TEMPORAL_CRITERIA[name](known(steps, profile, loss), total)
    assert steps == before and len(found) == len(steps) and all(isinstance(t, int) for t in found)
    assert all(1 <= new <= old for new, old in zip(found, steps, strict=True))
    assert sum(found) <= max(total, len(steps))


def test_uniform_by_hand() -> None:
    assert uniform(known([4, 4, 4]), 12) == [4, 4, 4]
    assert uniform(known([4, 4, 4]), 10) == [4, 3, 3]  # the last layers first
    assert uniform(known([2, 6, 3]), 8) == [2, 3, 3]
    assert uniform(known([2, 6, 3]), 7) == [2, 3, 2]
    assert uniform(known([3, 3]), 0) == [1, 1]


def test_convergence_by_hand() -> None:
    profile = [torch.tensor([0.5, 0.125, 0.0]), torch.tensor([0.25, 0.1875, 0.0625, 0.0])]
    wanted = {7: [3, 4], 6: [3, 3], 5: [2, 3], 4: [2, 2], 3: [2, 1], 2: [1, 1], 1: [1, 1]}
    assert {total: convergence(known([3, 4], profile), total) for total in wanted} == wanted
    # 0.0 at step 1 is a crossing, not rest: the train has settled only where it stays
    crossing = [torch.tensor([0.0, 0.5, 0.0]), torch.tensor([0.25, 0.25, 0.0])]
    assert convergence(known([3, 3], crossing), 4) == [3, 1]


def test_sensitivity_by_hand() -> None:
    costs = [{1: 9.0, 2: 1.0, 3: 0.0}, {1: 2.0, 2: 1.5, 3: 0.0}, {1: 0.5}]
    asked = []

    def loss(t_steps) -> float:
        asked.append(tuple(t_steps))
        return sum(cost[t] for cost, t in zip(costs, t_steps, strict=True))

    # 3 3 1 -> 2 3 1 (1.0 dearer; the other 1.5) -> 2 2 1 (1.5; 8.0) -> 2 1 1 (0.5; 8.0) -> 1 1 1
    wanted = {7: [3, 3, 1], 6: [2, 3, 1], 5: [2, 2, 1], 4: [2, 1, 1], 3: [1, 1, 1], 0: [1, 1, 1]}
    assert {total: sensitivity(known([3, 3, 1], loss=loss), total) for total in wanted} == wanted
    asked.clear()
    assert sensitivity(known([3, 3, 1], loss=loss), 5) == [2, 2, 1]
    assert asked == [(2, 3, 1), (3, 2, 1), (1, 3, 1), (2, 2, 1)]  # a layer of one step is never asked about
    assert sensitivity(known([2, 2], loss=lambda _: 0.0), 3) == [1, 2]  # ties: the earlier layer


def test_sensitivity_sees_what_steps_do_together() -> None:
    """Taking either first layer's step alone is cheap, both is not: a ranking made once would take both."""
    losses = {(1, 2, 2): 0.1, (2, 1, 2): 0.2, (2, 2, 1): 0.3, (1, 1, 2): 5.0, (1, 2, 1): 0.4, (2, 1, 1): 0.5}
    assert sensitivity(known([2, 2, 2], loss=lambda t: losses[tuple(t)]), 4) == [1, 2, 1]


@pytest.mark.parametrize("coding", CODINGS)
def test_the_loss_is_that_of_a_student_with_these_steps(coding) -> None:
    student, data = make(4, (3, 4, 2), coding=coding), batches((3, 2))
    losses, other = [], make(4, (2, 4, 1), coding=coding).eval()
    with torch.no_grad():
        for batch in data:
            losses += loss_of(batch, other(**inputs(batch), mode="spiking")).tolist()
    assert loss_at(student, [2, 4, 1], data, loss_of).item() == pytest.approx(sum(losses) / 5)
    assert student.steps == [3, 4, 2] and student.training
    with pytest.raises(ZeroDivisionError):
        loss_at(student, [1, 1, 1], data, lambda batch, outputs: 1 / 0)
    assert student.steps == [3, 4, 2] and student.training


def test_temporal_statistics_agree_over_processes() -> None:
    student, data, calls = make(2, (3, 4, 2)), batches((3, 2)), []

    def mean(x: torch.Tensor) -> torch.Tensor:  # of this process and one that found nothing
        calls.append(x)
        return x / 2

    stats = temporal_statistics(student, data, loss_of, mean=mean)
    assert stats.t_steps == [3, 4, 2] and not calls
    for found, own in zip(stats.profile, convergence_profile(student, data), strict=True):
        torch.testing.assert_close(found, own / 2)
    assert stats.profile is stats.profile and len(calls) == 3
    assert stats.loss_of([1, 4, 2]) == loss_at(student, [1, 4, 2], data, loss_of).item() / 2


def test_the_profile_is_the_distance_to_the_last_asr() -> None:
    """Against ASRs measured by giving the network that many steps: in `accumulate` the first layers do not change."""
    student, data = make(2, (5, 1, 1)).eval(), batches((3, 2))
    profile = convergence_profile(student, data)
    assert [len(layer) for layer in profile] == [5, 1, 1]
    theta, error, size = student.embedding.neurons.theta, torch.zeros(5).double(), 0.0
    with torch.no_grad():
        for batch in data:
            real = batch["attention_mask"].bool()
            rates = []
            for t in range(1, 6):
                student.set_t_steps([t, 1, 1])
                rates.append(student(**inputs(batch)).hidden[0][real] / theta)
            error += torch.stack([(rate - rates[-1]).abs().sum() for rate in rates])
            size += rates[-1].abs().sum()
    torch.testing.assert_close(profile[0], error / size)
    assert profile[0][-1] == 0 and profile[0][0] > 0.05 and profile[1].item() == 0


def test_the_profile_of_a_layer_is_the_mean_of_its_spiking_layers() -> None:
    student, data = make(2, (3, 4, 2)), batches((3,))
    student.eval()
    with torch.no_grad():
        traces = student(**inputs(data[0]), mode="spiking", trace=True).traces
    student.train()
    profile = convergence_profile(student, data)
    assert student.training
    parts = [error / size for name, (error, size) in traces.items() if name.startswith("layers.0.")]
    assert len(parts) == 6
    torch.testing.assert_close(profile[1], sum(parts) / 6)
