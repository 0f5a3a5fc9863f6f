"""Masks that keep the highest scores, by hand, and the criteria of heads and neurons against brute force."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pruning import D, F, H, L, batches, inputs, loss_of, make

from spikeprune.pruning.criteria import CRITERIA, random
from spikeprune.pruning.schedules import cubic, keep_highest
from spikeprune.pruning.statistics import collect

# ------------------------------------------------------------------------------------------------------------- budgets


def kept(scores, alive, keep, **options) -> list[list[int]]:
    scores, alive = torch.tensor(scores, dtype=torch.float64), torch.tensor(alive, dtype=torch.float64)
    before = alive.clone()
    mask = keep_highest(scores, alive, keep, **options)
    assert torch.equal(alive, before) and mask.dtype == alive.dtype
    return mask.int().tolist()


ALL = [[1, 1, 1], [1, 1, 1]]


@pytest.mark.parametrize(
    ("scores", "alive", "keep", "floor", "scope", "mask"),
    [
        ([[9, 8, 7], [1, 2, 3]], ALL, 3, 0, "global", [[1, 1, 1], [0, 0, 0]]),
        ([[9, 8, 7], [1, 2, 3]], ALL, 3, 1, "global", [[1, 1, 0], [0, 0, 1]]),  # the floor takes from the others
        ([[9, 8, 7], [1, 2, 3]], ALL, 2, 2, "global", [[1, 1, 0], [0, 1, 1]]),  # and wins over a budget below it
        ([[9, 8, 7], [1, 2, 3]], ALL, 6, 1, "global", ALL),
        ([[9, 8, 7], [1, 2, 3]], ALL, 4, 1, "layer", [[1, 1, 0], [0, 1, 1]]),
        ([[9, 8, 7], [1, 2, 3]], ALL, 5, 1, "layer", [[1, 1, 1], [0, 1, 1]]),  # the fifth: 7 before 1
        ([[9, 8, 7], [1, 2, 3]], ALL, 2, 2, "layer", [[1, 1, 0], [0, 1, 1]]),
        # what is pruned stays pruned, however high its score; a layer below the floor keeps what it has
        ([[9, 8, 7], [6, 5, 4]], [[0, 1, 1], [1, 1, 1]], 3, 0, "global", [[0, 1, 1], [1, 0, 0]]),
        ([[9, 8, 7], [6, 5, 4]], [[0, 0, 1], [1, 1, 1]], 4, 2, "global", [[0, 0, 1], [1, 1, 1]]),
        ([[9, 8, 7], [6, 5, 4]], [[0, 0, 1], [1, 1, 1]], 4, 2, "layer", [[0, 0, 1], [1, 1, 0]]),
        ([[9, 8, 7], [6, 5, 4]], [[0, 0, 0], [1, 1, 1]], 2, 1, "global", [[0, 0, 0], [1, 1, 0]]),
        ([[5, 5, 5], [5, 5, 5]], ALL, 4, 0, "global", [[1, 1, 1], [1, 0, 0]]),  # ties: the earlier unit
        ([[5, 5, 5], [5, 5, 5]], ALL, 4, 1, "layer", [[1, 1, 0], [1, 1, 0]]),
        ([[0, 0, 0], [0, 0, 0]], ALL, 3, 1, "global", [[1, 1, 0], [1, 0, 0]]),  # zero is a score like another
    ],
)
def test_keep_highest_by_hand(scores, alive, keep, floor, scope, mask) -> None:
    assert kept(scores, alive, keep, floor=floor, scope=scope) == mask


@given(st.integers(0, 2**31), st.integers(0, 28), st.integers(0, 3), st.sampled_from(["global", "layer"]))
def test_keep_highest_keeps_its_promises(seed, keep, floor, scope) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 9, (4, 7), generator=generator).double()  # with ties
    alive = (torch.rand(4, 7, generator=generator) < 0.8).double()
    mask = keep_highest(scores, alive, keep, floor=floor, scope=scope)
    assert (mask <= alive).all()
    assert (mask.sum(1) >= alive.sum(1).clamp(max=floor)).all()
    if scope == "global":
        floors = int(alive.sum(1).clamp(max=floor).sum())
        assert mask.sum() == max(floors, min(keep, int(alive.sum())))
    for row in range(4):  # in a layer nothing lower stays while something higher goes
        stays, goes = scores[row][mask[row] > 0], scores[row][(mask[row] == 0) & (alive[row] > 0)]
        assert not len(stays) or not len(goes) or stays.min() >= goes.max()
    assert torch.equal(keep_highest(scores, mask, keep, floor=floor, scope=scope), mask)  # deciding twice is once


def test_cubic_schedule() -> None:
    assert cubic(0, 0.2) == 1.0 and cubic(1, 0.2) == pytest.approx(0.2)
    assert cubic(-3, 0.2) == 1.0 and cubic(7, 0.2) == pytest.approx(0.2)
    assert cubic(0.5, 0.2) == pytest.approx(0.3)  # 0.2 + 0.8 / 8: most has left by half time
    values = [cubic(i / 20, 0.2) for i in range(21)]
    gaps = [a - b for a, b in zip(values, values[1:], strict=False)]
    assert all(gap > 0 for gap in gaps) and gaps == sorted(gaps, reverse=True)


# ---------------------------------------------------------------------------------------------------- spatial criteria


@pytest.fixture(scope="module")
def pruned():
    student = make()
    student.heads[0, 1] = 0
    student.ffn[1, 3:9] = 0
    return student, batches()


@pytest.mark.parametrize("name", CRITERIA)
def test_contract_of_spatial_criteria(name, pruned) -> None:
    student, data = pruned
    heads, ffn = CRITERIA[name](collect(student, data, loss_of))
    assert heads.shape == (L, H) and ffn.shape == (L, F)
    for scores in (heads, ffn):
        assert scores.isfinite().all() and (scores >= 0).all() and scores.unique().numel() > 1
        assert not scores.requires_grad


def test_collecting_leaves_no_trace(pruned) -> None:
    student, data = pruned
    before = {name: x.clone() for name, x in student.state_dict().items()}
    for training in (True, False):
        student.train(training)
        collect(student, data, loss_of)
        assert student.training is training
    assert all(torch.equal(x, before[name]) for name, x in student.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in student.parameters())
    assert not any(module._forward_hooks for module in student.modules())


@pytest.mark.parametrize("spikes", ["binary", "ternary"])
def test_fisher_and_taylor_are_means_over_each_samples_own_gradient(spikes) -> None:
    student, data = make(3, spikes=spikes), batches((3, 2))
    student.heads[0, 1] = 0
    stats = collect(student, data, loss_of)
    heads, ffn, samples = torch.zeros(L, H).double(), torch.zeros(L, F).double(), 0
    head_sizes, ffn_sizes = torch.zeros(L, H).double(), torch.zeros(L, F).double()
    for batch in data:
        for i in range(len(batch["labels"])):
            n = int(batch["attention_mask"][i].sum())
            one = {name: x[i : i + 1] if name == "labels" else x[i : i + 1, :n] for name, x in batch.items()}
            brute = make(3, spikes=spikes).eval()
            brute.load_state_dict(student.state_dict())
            brute.heads.requires_grad_()
            brute.ffn.requires_grad_()
            loss_of(one, brute(**inputs(one))).backward()
            heads += brute.heads.grad**2
            ffn += brute.ffn.grad**2
            head_sizes += brute.heads.grad.abs()
            ffn_sizes += brute.ffn.grad.abs()
            samples += 1
    assert samples == 5 and heads.min() >= 0 and heads.max() > 1e-8
    torch.testing.assert_close(stats.head_fisher, heads / samples)
    torch.testing.assert_close(stats.ffn_fisher, ffn / samples)
    torch.testing.assert_close(stats.head_taylor, head_sizes / samples)
    torch.testing.assert_close(stats.ffn_taylor, ffn_sizes / samples)


def test_random_follows_its_seed_alone(pruned) -> None:
    student, data = pruned
    first = random(collect(student, data, loss_of, seed=7))
    torch.manual_seed(123)  # another process, or a resumed one
    again, other = (random(collect(make(5), batches((1,)), loss_of, seed=seed)) for seed in (7, 8))
    for i in (0, 1):
        assert torch.equal(first[i], again[i]) and not torch.equal(first[i], other[i])
        assert 0 <= first[i].min() and first[i].max() < 1 and first[i].unique().numel() == first[i].numel()


def test_rate_is_the_share_of_steps_with_a_spike(pruned) -> None:
    student, data = pruned
    student.eval()
    stats = collect(student, data, loss_of)
    tokens = sum(int(batch["attention_mask"].sum()) for batch in data)
    for layer, t_steps in enumerate(student.steps[1:]):
        context, neurons = torch.zeros(D).double(), torch.zeros(F).double()
        for batch in data:
            with torch.no_grad():
                counts = student(**inputs(batch), mode="spiking", count=True).counts
            context += counts[f"layers.{layer}.context"].sum((0, 1))
            neurons += counts[f"layers.{layer}.intermediate"].sum((0, 1))
        torch.testing.assert_close(stats.head_rate[layer], context.view(H, D // H).mean(1) / (tokens * t_steps))
        torch.testing.assert_close(stats.ffn_rate[layer], neurons / (tokens * t_steps))
    assert stats.head_rate[0, 1] == 0 and (stats.ffn_rate[1, 3:9] == 0).all() and stats.head_rate.max() > 0.05


def test_magnitude_by_hand() -> None:
    student = make()
    with torch.no_grad():
        for layer in student.layers:
            for linear in (layer.value, layer.out, layer.up, layer.down):
                linear.weight.zero_()
        layer = student.layers[1]
        layer.value.weight[4, 0], layer.value.weight[7, 2] = 3.0, 4.0  # channels 4 and 7: head 1, norm 5
        layer.out.weight[0, 5] = 2.0  # reads channel 5: head 1
        layer.out.weight[1, 0] = 9.0  # head 0, whose value is silent
        layer.up.weight[6, 1], layer.down.weight[2, 6] = 2.0, 3.0
        layer.up.weight[7, 1] = 5.0
    stats = collect(student, batches((2,)), loss_of)
    assert stats.head_weight.tolist() == [[0, 0, 0], [0, 10, 0]]
    assert stats.ffn_weight[1, 6] == 6 and stats.ffn_weight.sum() == 6
