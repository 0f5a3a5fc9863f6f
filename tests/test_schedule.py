"""The clock that pruning callbacks share, and what they leave of a student; names in checks and registries."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from pruning import L, Module, batches, known, make

from spikeprune.config import names
from spikeprune.config.derived import COMPRESSION
from spikeprune.cost.energy_models import ENERGY_MODELS
from spikeprune.cost.network import level_bits
from spikeprune.experiment.build.callbacks import COMPRESSING
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.quantization import WEIGHTS
from spikeprune.pruning.criteria import CRITERIA, TEMPORAL_CRITERIA, uniform
from spikeprune.snn.coding import CODINGS
from spikeprune.snn.neurons import NEURONS
from spikeprune.training.callbacks.schedule import EpochSchedule, last_decision
from spikeprune.training.callbacks.spatial import SpatialPruning
from spikeprune.training.callbacks.temporal import TemporalPruning

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


def test_a_schedule_resumes_where_it_was() -> None:
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


def test_the_last_decision_by_hand() -> None:
    assert [last_decision(end, 6) for end in (0.0, 0.5, 0.75, 1.0)] == [0, 3, 4, 4]  # the last epoch only recovers
    assert [last_decision(0.5, epochs) for epochs in (1, 2, 3, 8)] == [0, 0, 1, 4]


def play(callback, student: SpikingBert, epochs: int) -> list[tuple]:
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
    assert names.SPATIAL_CRITERIA == (*CRITERIA, "kwon")
    assert names.TEMPORAL_CRITERIA == tuple(TEMPORAL_CRITERIA)
    assert names.ENERGY_MODELS == tuple(ENERGY_MODELS)
    longest = level_bits(names.LONGEST, signed=True)
    narrow = {name: model.widest for name, model in ENERGY_MODELS.items() if model.widest < longest}
    assert names.WIDEST_ACTIVATION == narrow
    assert (*COMPRESSION, "finetune") == tuple(COMPRESSING)
    assert names.WEIGHTS == WEIGHTS
    assert names.NEURONS == tuple(NEURONS)
    assert names.CODINGS == tuple(CODINGS)
    assert names.NOT_CONVERGING == tuple(name for name, coding in CODINGS.items() if not coding.converges)
