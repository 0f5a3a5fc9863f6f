"""A budget while the student trains: its decisions, the limit and the penalty scale of the losses, and the last
correction. A run on a student of two layers, epoch by epoch, without an optimizer: the effect of training on the cost
is simulated by changing the meter's unit."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from pruning import F, H, batches, make
from test_joint import TEACHER, meter

from spikeprune.config.schema import Config, Stage
from spikeprune.config.tasks import TASKS
from spikeprune.experiment.build.callbacks import budget
from spikeprune.models.teacher import Teacher, scratch_config
from spikeprune.pruning.budget import TOLERANCE
from spikeprune.training.additions import AdditionsTerm
from spikeprune.training.callbacks.budget import SLACK, BudgetPruning
from spikeprune.training.losses import soft_loss
from spikeprune.training.modules.student import DistillationModule
from spikeprune.training.objective import LossWeights
from spikeprune.training.optimizer import Optimization
from spikeprune.training.rate_limit import MAX_PENALTY_SCALE, rate_factor

EPOCHS = 8
GOAL = 0.5  # of what the student costs at first


def module(**losses) -> DistillationModule:
    task, student = TASKS["mnli"], make(1).float()
    torch.manual_seed(0)
    config = scratch_config(vocab=23, positions=8, hidden=12, layers=3, heads=H, ffn=F, classes=3, dropout=0.0)
    how = Optimization(lr=1e-3, theta_lr=1e-3, warmup=0.0, weight_decay=0.0)
    common = {"task": task, "dev_splits": task.dev_splits, "optimization": how, "layer_map": [0, 2]}
    made = DistillationModule(
        student, Teacher.scratch(config), losses=LossWeights(**({"soft": 1.0, "additions": 2.0} | losses)), **common
    )
    made.log = lambda *_: None
    return made.train()


def term(made: DistillationModule) -> AdditionsTerm:
    return made.objective.additions


def callback(share: float, **changes) -> BudgetPruning:
    options = {"target": "energy", "relative_to": "dense", "candidates": ("heads", "ffn", "steps"), "min_heads": 1}
    options |= {"min_ffn": 4, "block": 4, "sentences": 8, "measured": 7, "batch_size": 4}
    options |= {"dense_shape": TEACHER, "seed": 0}
    return BudgetPruning(share=share, **options, **({"begin": 0, "settle": 3, "end": 5} | changes))


DATA = SimpleNamespace(
    sample_batches=lambda *_: batches((4, 3), seed=3),
    fixed_batches=lambda *_: batches((4, 4), seed=2),
)


def cost(made: DistillationModule) -> float:
    return meter().value(made.student)


def units(made: DistillationModule) -> tuple:
    student = made.student
    return tuple(student.heads.flatten().tolist()), tuple(student.ffn.flatten().tolist()), tuple(student.steps)


def play(made: DistillationModule, mine: BudgetPruning, drift, epochs=range(EPOCHS)) -> list[SimpleNamespace]:
    """What each epoch trained with. `drift(epoch)`: by what share its spikes get dearer."""
    history = []
    for epoch in epochs:
        trainer = SimpleNamespace(current_epoch=epoch, max_epochs=EPOCHS, sanity_checking=False, datamodule=DATA)
        torch.manual_seed(epoch)  # as a checkpoint does: curvature is that of answers drawn
        mine.on_train_start(trainer, made)
        before = mine.cost_meter(trainer, made).value(made.student)
        mine.on_train_epoch_start(trainer, made)
        with_what = {
            "units": units(made),
            "limit": term(made).limit.item(),
            "penalty_scale": term(made).penalty_scale.item(),
        }
        history.append(SimpleNamespace(before=before, cost=mine.meter.value(made.student), **with_what))
        mine.meter.unit /= 1 + drift(epoch)
        mine.on_train_epoch_end(trainer, made)
    return history


def test_the_last_epochs_only_train_and_the_end_keeps_to_the_goal() -> None:
    made = module()
    goal = GOAL * cost(made)
    mine = callback(goal)
    history = play(made, mine, lambda epoch: 0.02)
    assert history[3].cost <= goal  # at `settle`
    assert history[5].units == history[6].units == history[7].units != history[0].units
    assert mine.drift > 0 and mine.meter.value(made.student) <= goal  # what training added has left again
    assert mine.value == mine.meter.value(made.student) and mine.report(mine.value)["drift"] == mine.drift


def test_without_drift_nothing_leaves_at_the_end() -> None:
    made = module()
    mine = callback(1.01 * cost(made))
    history = play(made, mine, lambda epoch: 0.0)
    assert -TOLERANCE <= mine.drift <= 0 and {e.units for e in history} == {units(made)}


def test_the_limit_is_first_what_the_additions_are() -> None:
    made = module()
    goal = GOAL * cost(made)
    mine = callback(goal)
    first = play(made, mine, lambda epoch: 0.0, range(1))[0]
    additions = term(made).mean(made.student, batches((4, 4), seed=2), "equilibrium").item()
    assert first.limit == pytest.approx(additions, rel=1e-5)
    here = batches((4,), seed=2)[0]
    term(made).limit.mul_(0.5)
    outputs = made.student(here["input_ids"], here["attention_mask"], here["token_type_ids"], rate=True)
    found = made.objective(here, outputs, made.student, made.teacher_outputs(here))["additions"]
    whole = term(made).expected(made.student, outputs, here["attention_mask"].sum(1).float().mean())
    assert found.item() == pytest.approx(whole.item() - first.limit / 2, rel=1e-5)
    term(made).penalty_scale.fill_(3.0)
    assert made.objective.weight("additions") == 6.0 and made.objective.weight("soft") == 1.0


@pytest.mark.parametrize("soft", [3.0, 0.0])
def test_output_distance_has_the_unit_of_the_loss(soft) -> None:
    """Of a candidate's two prices the greater counts, so the stage's weight is on both; a hard loss alone has one."""
    made = module(soft=soft, hard=1.0, temperature=4.0)
    trainer = SimpleNamespace(datamodule=DATA)
    one, other = torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[0.0, 2.0, 3.0]])
    found = callback(GOAL).budget(trainer, made).distance(one, other)
    plain = soft_loss(one, other, temperature=4.0, regression=False)
    torch.testing.assert_close(found, (soft or 1.0) * plain)
    assert plain > 0


def test_rates_are_limited_and_reach_the_goal() -> None:
    """From 1 to 0.2 in four decisions: the cubic leaves 0.5375, then 0.3, 0.2125 and 0.2. Above a goal that is held the
    rates are to go to one per cent below it."""
    mine = callback(0.2)
    mine.start = 1.0
    assert [mine.scheduled(epoch) for epoch in (0, 1, 2, 3, 5)] == pytest.approx([0.5375, 0.3, 0.2125, 0.2, 0.2])
    assert rate_factor(0.25, 0.2) == pytest.approx(0.198 / 0.25)
    made = module()
    history = play(made, callback(GOAL * cost(made)), lambda epoch: 0.0)
    additions = term(made).mean(made.student, batches((4, 4), seed=2), "equilibrium").item()
    last = history[-1]
    assert last.limit == pytest.approx(additions * 0.99 * GOAL * history[0].before / last.cost, rel=1e-5)


@pytest.mark.parametrize("losses", [{"additions": 0.0}, {"additions_limit": 0.0}, {"additions_limit": 0.3}])
def test_a_given_limit_stays(losses) -> None:
    made = module(**losses)
    mine = callback(GOAL * cost(made))
    limit = pytest.approx(losses.get("additions_limit", 0.0))
    assert all(e.limit == limit and e.penalty_scale == 1 for e in play(made, mine, lambda epoch: 0.02))


def test_the_press_doubles_after_each_epoch_that_ends_above_the_goal() -> None:
    made = module()
    mine = callback(1.015 * cost(made))
    history = play(made, mine, lambda epoch: 0.01)  # above from the third epoch's start on
    assert [e.penalty_scale for e in history] == [1, 1, 2, 4, 8, 16, 16, 16] and MAX_PENALTY_SCALE == 16


def test_what_training_may_mend_is_no_reason_to_prune() -> None:
    """A stage that begins at the goal holds: less than the slack above it changes nothing, more does."""
    made = module()
    goal = cost(made)
    mine = callback(goal)
    few = play(made, mine, lambda epoch: 0.02, range(4))
    assert len({e.units for e in few}) == 1 and goal < few[-1].before <= goal * (1 + SLACK)
    mine.meter.unit /= 1.1
    (more,) = play(made, mine, lambda epoch: 0.0, range(4, 5))
    assert more.units != few[0].units and more.cost <= goal


def test_a_resumed_run_has_limit_and_penalty_scale() -> None:
    whole, legs = module(), module()
    goal = GOAL * cost(whole)
    one, two, three = (callback(goal) for _ in range(3))
    expected = play(whole, one, lambda epoch: 0.01)
    found = play(legs, two, lambda epoch: 0.01, range(5))
    three.load_state_dict(two.state_dict())
    three.meter = two.meter  # with its model
    term(legs).limit.zero_(), term(legs).penalty_scale.fill_(1.0)
    found += play(legs, three, lambda epoch: 0.01, range(5, EPOCHS))
    assert found == expected
    term(legs).limit.zero_()
    three.on_train_start(SimpleNamespace(), legs)
    assert term(legs).limit.item() == pytest.approx(found[-1].limit) and units(legs) == units(whole)


@pytest.mark.parametrize(("epochs", "when"), [(8, (0, 4, 5)), (3, (0, 1, 1)), (1, (0, 0, 0)), (20, (0, 10, 14))])
def test_when_it_decides(epochs, when, monkeypatch) -> None:
    monkeypatch.setattr("spikeprune.experiment.build.callbacks.teacher_shape", lambda _: TEACHER)
    config, bert = Config(), SimpleNamespace(intermediate_size=F)
    config.stages.budget.value = 0.1
    context = SimpleNamespace(config=config, stage=lambda _: Stage(epochs=epochs), teacher_config=bert)
    (made,) = budget(context, "finetune")
    assert (made.begin, made.settle, made.end) == when
