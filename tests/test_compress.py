"""Schedules and budgets by hand, criteria against brute force, and the clock that the callbacks share."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spikeprune.builders.callbacks import CALLBACKS
from spikeprune.callbacks.schedule import EpochSchedule, stage_epochs
from spikeprune.callbacks.spatial import SpatialPruning
from spikeprune.callbacks.temporal import TemporalPruning
from spikeprune.checks import names
from spikeprune.compress.budget import cubic, keep_highest
from spikeprune.compress.criteria import CRITERIA, TEMPORAL_CRITERIA, convergence, random, sensitivity, uniform
from spikeprune.compress.stats import (
    TemporalStatistics,
    collect,
    convergence_profile,
    loss_at,
    temporal_statistics,
)
from spikeprune.cost import PRICES
from spikeprune.distill import hard_loss
from spikeprune.models.quant import WEIGHTS
from spikeprune.models.student import Student
from spikeprune.spiking.coding import CODINGS
from spikeprune.spiking.neurons import NEURONS

D, H, F, N, L = 12, 3, 37, 8, 2


def make(seed: int = 0, t_steps=(3, 4, 2), **options) -> Student:
    torch.manual_seed(seed)
    size = {"vocab": 23, "positions": N, "segments": 2, "hidden": D, "heads": H, "ffn": F, "classes": 3}
    student = Student(**size, layers=len(t_steps) - 1, t_steps=list(t_steps), **options).double()
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if parameter.dim() == 2 and not name.startswith("embedding"):
                parameter.normal_(std=parameter.shape[1] ** -0.5)
            elif name.endswith("log_theta"):
                parameter.copy_(-1 + 0.3 * torch.randn_like(parameter))
    return student


def batches(sizes=(3, 2), seed: int = 1) -> list[dict[str, torch.Tensor]]:
    generator, out = torch.Generator().manual_seed(seed), []
    for size in sizes:
        lengths = torch.randint(2, N + 1, (size, 1), generator=generator)
        out.append(
            {
                "input_ids": torch.randint(23, (size, N), generator=generator),
                "attention_mask": (torch.arange(N) < lengths).long(),
                "token_type_ids": torch.randint(2, (size, N), generator=generator),
                "labels": torch.randint(3, (size,), generator=generator),
            }
        )
    return out


def loss_of(batch, outputs) -> torch.Tensor:
    return hard_loss(outputs.logits, batch["labels"], regression=False)


def inputs(batch):
    return {name: x for name, x in batch.items() if name != "labels"}


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
    assert cubic(0, 1.0, 0.2) == 1.0 and cubic(1, 1.0, 0.2) == pytest.approx(0.2)
    assert cubic(-3, 1.0, 0.2) == 1.0 and cubic(7, 1.0, 0.2) == pytest.approx(0.2)
    assert cubic(0.5, 1.0, 0.2) == pytest.approx(0.3)  # 0.2 + 0.8 / 8: most has left by half time
    values = [cubic(i / 20, 1.0, 0.2) for i in range(21)]
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


# --------------------------------------------------------------------------------------------------- temporal criteria


@st.composite
def trains(draw):
    steps = draw(st.lists(st.integers(1, 9), min_size=2, max_size=6))
    errors = st.floats(0, 2, allow_nan=False)
    profile = [torch.tensor([*draw(st.lists(errors, min_size=t - 1, max_size=t - 1)), 0.0]).double() for t in steps]
    return steps, draw(st.integers(0, sum(steps) + 3)), profile


def never(*_):
    raise AssertionError("measured for nothing")


def known(t_steps, profile=None, loss=never) -> TemporalStatistics:
    """Statistics that need no student; what is not given must not be asked for."""
    return TemporalStatistics(t_steps, never if profile is None else lambda: profile, loss)


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
    student, data = make(4, (3, 4, 2), coding=coding, dropout=0.3), batches((3, 2))
    losses, other = [], make(4, (2, 4, 1), coding=coding, dropout=0.3).eval()
    with torch.no_grad():
        for batch in data:
            losses += loss_of(batch, other(**inputs(batch), mode="spiking")).tolist()
    assert loss_at(student, [2, 4, 1], data, loss_of).item() == pytest.approx(sum(losses) / 5)
    assert student.steps == [3, 4, 2] and student.training
    with pytest.raises(ZeroDivisionError):
        loss_at(student, [1, 1, 1], data, lambda batch, outputs: 1 / 0)
    assert student.steps == [3, 4, 2] and student.training


def test_temporal_statistics_measure_when_asked_and_agree_over_processes() -> None:
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
    theta, error, size = student.embedding.site.theta, torch.zeros(5).double(), 0.0
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


def test_the_profile_of_a_layer_is_the_mean_of_its_sites() -> None:
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


# ----------------------------------------------------------------------------------------------------------- callbacks


class Diary(EpochSchedule):
    def __init__(self, **epochs):
        super().__init__(**epochs)
        self.entries = []

    def decide(self, trainer, module, progress) -> None:
        self.entries.append((trainer.current_epoch, progress))


def start(callback, epoch: int, *, sanity: bool = False) -> None:
    trainer, module = SimpleNamespace(current_epoch=epoch, sanity_checking=sanity), SimpleNamespace(student=None)
    callback.on_train_epoch_start(trainer, module)


def test_a_schedule_decides_once_in_each_of_its_epochs() -> None:
    diary = Diary(begin=1, end=4)
    start(diary, 1, sanity=True)
    assert diary.entries == []
    for epoch in range(7):
        start(diary, epoch)
        start(diary, epoch)  # resumed in the middle of the epoch
    assert diary.entries == [(1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0)]


def test_a_schedule_goes_on_where_it_was() -> None:
    first, second = Diary(begin=0, end=3), Diary(begin=0, end=3)
    for epoch in (0, 1):
        start(first, epoch)
    second.load_state_dict(first.state_dict())
    for epoch in (1, 2, 3):
        start(second, epoch)
    assert second.entries == [(2, 0.75), (3, 1.0)]


@pytest.mark.parametrize(("begin", "end"), [(-1, 2), (3, 2)])
def test_a_schedule_that_cannot_be(begin, end) -> None:
    with pytest.raises(ValueError, match="0 <= begin <= end"):
        Diary(begin=begin, end=end)


def test_stage_epochs_by_hand() -> None:
    assert stage_epochs(0.0, 0.5, 6) == (0, 3)
    assert stage_epochs(0.25, 0.75, 8) == (2, 6)
    assert stage_epochs(0.0, 1.0, 6) == (0, 4)  # the last epoch only recovers
    assert stage_epochs(1.0, 1.0, 6) == (4, 4)
    assert stage_epochs(0.0, 0.5, 1) == (0, 0)
    assert stage_epochs(0.0, 0.5, 2) == (0, 0)
    for epochs in range(1, 12):
        for i in range(5):
            for j in range(i, 5):
                begin, end = stage_epochs(i / 4, j / 4, epochs)
                assert 0 <= begin <= end <= max(0, epochs - 2)


class Module:
    """What the callbacks ask of a LightningModule."""

    device = torch.device("cpu")
    sample_loss = staticmethod(loss_of)
    varied = staticmethod(dict)  # nothing is replaced
    losses = SimpleNamespace(soft=1.0)

    def __init__(self, student: Student):
        self.student, self.logged = student, {}

    def log(self, name, value, **_) -> None:
        self.logged[name] = float(value)


def play(callback, student: Student, epochs: int) -> list[tuple]:
    """Heads, neurons and steps after each epoch's start."""
    data = SimpleNamespace(fixed_batches=lambda count, size, seed: batches((size,) * count, seed))
    strategy = SimpleNamespace(reduce=lambda x, reduce_op: x)
    trainer = SimpleNamespace(datamodule=data, strategy=strategy, sanity_checking=False, current_epoch=0)
    module, history = Module(student), []
    for trainer.current_epoch in range(epochs):
        callback.on_train_epoch_start(trainer, module)
        history.append((int(student.heads.sum()), int(student.ffn.sum()), list(student.steps)))
        callback.on_train_epoch_end(trainer, module)
        shares = {"heads": student.heads.mean(), "ffn": student.ffn.mean(), "t_steps": student.t_steps.double().mean()}
        assert module.logged == {name: shares[name.removeprefix("compress/")] for name in module.logged} != {}
    return history


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_spatial_pruning_reaches_its_target(criterion, scope) -> None:
    student = make(1)
    options = {"criterion": criterion, "scope": scope, "min_heads": 1, "min_ffn": 4, "batches": 2, "batch_size": 3}
    callback = SpatialPruning(heads=2 / 3, ffn=0.2, **options, seed=5, begin=1, end=3)
    history = play(callback, student, 5)
    heads, ffn, steps = zip(*history, strict=True)
    assert heads[0] == 6 and ffn[0] == 74 and set(map(tuple, steps)) == {(3, 4, 2)}
    assert heads[3] == heads[4] == 4
    off = L / 2 if scope == "layer" else 0  # equal shares are rounded
    # 1/3, 2/3 and all of the way: .2 + .8 (2/3)^3, .2 + .8 (1/3)^3 and .2 of 74
    assert all(abs(found - wanted) <= off for found, wanted in zip(ffn[1:], (32, 17, 15, 15), strict=True))
    assert (student.heads.sum(1) >= 1).all() and (student.ffn.sum(1) >= 4).all()
    assert set(student.ffn.unique().tolist()) == set(student.heads.unique().tolist()) == {0.0, 1.0}


def test_spatial_pruning_takes_the_least_important_first() -> None:
    student = make(1)
    with torch.no_grad():
        student.layers[0].down.weight[:, :30] *= 1e-6
    options = {"scope": "global", "min_heads": 1, "min_ffn": 1, "batches": 1, "batch_size": 3, "seed": 0}
    play(SpatialPruning(heads=1.0, ffn=44 / 74, criterion="magnitude", **options, begin=0, end=0), student, 2)
    assert not student.ffn[0, :30].any() and student.ffn[0, 30:].all() and student.ffn[1].all()
    assert student.heads.all()


@pytest.mark.parametrize("criterion", TEMPORAL_CRITERIA)
def test_temporal_pruning_reaches_its_target(criterion) -> None:
    student = make(1, (6, 8, 7))
    callback = TemporalPruning(t_steps=3, criterion=criterion, batches=2, batch_size=3, seed=5, begin=0, end=2)
    history = play(callback, student, 4)
    sums = [sum(steps) for _, _, steps in history]
    if criterion != "convergence":
        assert sums == [17, 13, 9, 9]  # 21 to 9 in three equal parts
    assert all(total <= wanted for total, wanted in zip(sums, (17, 13, 9, 9), strict=True))
    assert all(
        a >= b
        for before, after in zip(history, history[1:], strict=False)
        for a, b in zip(before[2], after[2], strict=True)
    )
    assert {(heads, ffn) for heads, ffn, _ in history} == {(6, 74)}


def test_temporal_pruning_resumed_keeps_its_line() -> None:
    """The line starts at the steps before the first decision, which a resumed callback no longer sees."""
    options = {"t_steps": 3, "criterion": "uniform", "batches": 1, "batch_size": 2, "seed": 5, "begin": 0, "end": 2}
    whole = make(1, (6, 8, 7))
    play(TemporalPruning(**options), whole, 3)
    student, first, second = make(1, (6, 8, 7)), TemporalPruning(**options), TemporalPruning(**options)
    play(first, student, 1)
    second.load_state_dict(first.state_dict())
    assert play(second, student, 2)[1][2] == uniform(known([6, 8, 7]), 13)
    assert play(second, student, 3)[2][2] == whole.steps


# ---------------------------------------------------------------------------------------------------------- registries


def test_the_names_in_checks_are_those_of_the_registries() -> None:
    assert names.SPATIAL_CRITERIA == tuple(CRITERIA)
    assert names.TEMPORAL_CRITERIA == tuple(TEMPORAL_CRITERIA)
    assert names.PRICES == tuple(PRICES)
    assert names.CALLBACKS == tuple(CALLBACKS)
    assert names.WEIGHTS == WEIGHTS
    assert names.NEURONS == tuple(NEURONS)
    assert names.CODINGS == tuple(CODINGS)
