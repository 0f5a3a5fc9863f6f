"""Gates under a budget: the expected cost against the counted one, gradients, hardening, and resume."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from pruning import F, H, L, Module, batches, inputs, make
from test_meter import TEACHER, meter

from spikeprune.config.schema import Config, Stage
from spikeprune.errors import InputError
from spikeprune.experiment.build.callbacks import budget
from spikeprune.models.outputs import inputs_of
from spikeprune.models.shape import student_shape
from spikeprune.pruning.budget import TOLERANCE, CostMeter
from spikeprune.pruning.gates import (
    floor_of,
    keep_within,
    masks_of,
    open_probability,
    sampled,
    set_masks,
    settled_gate,
    shorten,
)
from spikeprune.snn.call import shorter
from spikeprune.training.callbacks import budget as budgets
from spikeprune.training.callbacks.budget import BudgetPruning
from spikeprune.training.gates import Gates
from spikeprune.training.objective import AdditionsTerm

CLOSED, OPEN = -40.0, 40.0


def gates(student, kinds=("heads", "ffn", "steps"), **options) -> Gates:
    term = AdditionsTerm(student_shape(student))
    return Gates(student, kinds=kinds, **{"term": term, "steps": 10, "seed": 0} | options)


def tokens(batch) -> torch.Tensor:
    return batch["attention_mask"].sum(1).double().mean()


def gated(student, mine: Gates, batch):
    return student(**inputs_of(batch), rate=True, **mine.relaxed())


def close(mine: Gates, heads=(), ffn=(), steps=()) -> None:
    """These gates closed and all others open, for certain."""
    with torch.no_grad():
        mine.log_alpha.fill_(OPEN)
        for part, places in zip(mine.log_alpha.split(mine.sizes), (heads, ffn, steps), strict=True):
            part[list(places)] = CLOSED


# ---------------------------------------------------------------------------------------------------------- the gates


def test_a_gate_is_shut_and_open_as_often_as_its_probability_says() -> None:
    log_alpha = torch.tensor([-2.0, 0.0, 1.5]).double()
    noise = (torch.arange(200_000).double() + 0.5) / 200_000
    drawn = torch.stack([sampled(alpha, noise) for alpha in log_alpha])
    assert drawn.min() == 0 and drawn.max() == 1
    torch.testing.assert_close((drawn > 0).double().mean(1), open_probability(log_alpha), atol=1e-4, rtol=0)
    assert settled_gate(torch.tensor([CLOSED, 0.0, OPEN])).tolist() == pytest.approx([0, 0.5, 1])


@pytest.mark.parametrize("coding", ["accumulate", "per_step"])
def test_certain_gates_compute_the_pruned_student(coding) -> None:
    """Outputs and expected cost are those of masks and steps."""
    student, batch = make(1, (4, 4, 2), coding=coding), batches()[0]
    mode = "equilibrium" if coding == "accumulate" else "spiking"
    mine = gates(student)
    close(mine, heads=[1, 4], ffn=[0, 5, F + 3], steps=[1])
    found = student(**inputs_of(batch), mode=mode, rate=True, **mine.relaxed())
    cost = mine.cost(found, tokens(batch))
    student.heads.view(-1)[[1, 4]] = 0
    student.ffn.view(-1)[[0, 5, F + 3]] = 0
    shorten(student, [1])
    assert student.steps == [4, 3, 2]
    wanted = student(**inputs_of(batch), mode=mode, rate=True)
    torch.testing.assert_close(found.logits, wanted.logits)
    mine.learning = False
    assert mine.relaxed() == {}
    # rates are those of the whole train: a train of four fires as often a step as one of three, up to rounding
    torch.testing.assert_close(cost, mine.cost(wanted, tokens(batch)), rtol=0.1, atol=0)


def test_without_steps_the_expected_cost_is_the_counted_one() -> None:
    student, batch = make(1), batches()[0]
    mine = gates(student, kinds=("heads", "ffn"))
    close(mine, heads=[1, 4], ffn=[0, 5, F + 3])
    cost = mine.cost(gated(student, mine, batch), tokens(batch))
    set_masks(student, open_probability(mine.log_alpha.detach())[: H * L + F * L].round())
    assert student.heads.sum() == L * H - 2 and student.ffn.sum() == L * F - 3
    wanted = mine.term.expected(student, student(**inputs_of(batch), rate=True), tokens(batch))
    torch.testing.assert_close(cost, wanted)


@pytest.mark.parametrize("t_steps", [1, 2, 3, 4, 7, 8, 125])
def test_a_closed_gate_leaves_a_quarter_fewer_steps(t_steps) -> None:
    assert shorter(t_steps) == max(1, t_steps - max(1, t_steps // 4))
    mine = gates(make(0, (t_steps,) * 3), kinds=("steps",), term=None)
    close(mine, steps=[0, 2])
    cost = mine.cost(None, None)
    assert cost.item() == pytest.approx(2 * shorter(t_steps) + t_steps)


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_gradients_of_gates_are_those_of_finite_differences(kind) -> None:
    """Of the penalty, at fixed firing rates, and of a loss linear in what the last layer sends, of the last layer's
    units: nothing after them rounds."""
    student, batch = make(2, (4, 4, 4)), batches()[0]
    mine = gates(student)
    mine.noise.uniform_(0.2, 0.5)
    with torch.no_grad():
        mine.log_alpha.uniform_(-0.5, 0.5)
        mine.multiplier.fill_(0.7)
        mine.target.fill_(0.03)
    outputs = gated(student, mine, batch)
    outputs.rates = {name: rate.detach() for name, rate in outputs.rates.items()}
    at = [1, L * H + 3, L * H + L * F + 1][kind]

    def penalty() -> torch.Tensor:
        return mine.penalty(outputs, tokens(batch))

    assert torch.autograd.grad(penalty(), mine.multiplier)[0] == pytest.approx(
        (mine.cost(outputs, tokens(batch)) / mine.target).log().item()
    )
    (slope,) = torch.autograd.grad(penalty(), mine.log_alpha)
    values = []
    for change in (1e-6, -1e-6):
        with torch.no_grad():
            mine.log_alpha[at] += change
        values.append(penalty().item())
        with torch.no_grad():
            mine.log_alpha[at] -= change
    assert slope[at].item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4)
    assert slope[at] > 0  # to open it costs


def test_the_gradient_of_a_gate_of_steps_is_what_the_steps_change() -> None:
    """Of one spiking layer: value(z) is linear in z between the shorter train and the whole one."""
    student, batch = make(2, (4, 4, 4)), batches()[0]
    layer = student.embedding.neurons
    steps = torch.tensor([0.3, 1.0, 1.0]).double().requires_grad_()
    value = student(**inputs_of(batch), steps=steps).hidden[0]
    weights = torch.randn_like(value)
    (slope,) = torch.autograd.grad((value * weights).sum(), steps)
    whole, short = (student(**inputs_of(batch)).hidden[0], None)
    student.set_t_steps([3, 4, 4])
    short = student(**inputs_of(batch)).hidden[0]
    torch.testing.assert_close(value, short + 0.3 * (whole - short))
    assert slope[0].item() == pytest.approx(((whole - short) * weights).sum().item())
    assert layer.log_theta.grad is None


@pytest.mark.parametrize(("excess", "moved"), [(-0.5, 0.03), (0.0, 0.03), (0.05, 0.045), (0.2, 0.09), (2.0, 0.1)])
def test_gates_hurry_where_the_cost_is_behind(excess, moved) -> None:
    """Adam's first step is its learning rate, here 30 / 1000; times 1 + 10 excess, and 0.1 at most."""
    mine = gates(make(), steps=1000)
    before = mine.log_alpha.detach().clone()
    mine.log_alpha.grad, mine.multiplier.grad = torch.ones_like(before), torch.tensor(excess).to(before)
    mine.step()
    torch.testing.assert_close(before - mine.log_alpha, torch.full_like(before, moved))


# ---------------------------------------------------------------------------------------------------------- hardening


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_masks_keep_the_highest_within_two_percent(share) -> None:
    student = make(1)
    measure = meter()
    scores = torch.randn(L * H + L * F, generator=torch.Generator().manual_seed(3)).double()
    scores[2] = -torch.inf  # pruned before
    student.heads[0, 2] = 0
    before = measure.value(student)
    floor = floor_of(student, scores, torch.zeros_like(scores), min_heads=1, min_ffn=4)
    set_masks(student, floor)
    goal = measure.value(student) + share * (before - measure.value(student))
    found = keep_within(student, scores, floor, measure, goal)
    assert found == measure.value(student) and goal * (1 - 2 * TOLERANCE) <= found <= goal
    kept = masks_of(student)
    assert kept[2] == 0 and (student.heads.sum(1) >= 1).all() and (student.ffn.sum(1) >= 4).all()
    ranked = scores.masked_fill(floor > 0, -torch.inf)
    worst = ranked[(kept > 0) & (floor == 0)].min()
    passed = [i for i in range(len(kept)) if kept[i] == 0 and ranked[i] > worst]
    assert passed == ([0] if share == 0.5 else [])  # a head that was too large; else the ranking's start is kept


def test_folded_gates_compute_the_same() -> None:
    student, batch = make(1), batches()[0]
    mine = gates(student, kinds=("heads", "ffn"))
    with torch.no_grad():
        mine.log_alpha.uniform_(-0.6, 2.0)
    heads, ffn, steps = mine.settled()
    assert 0.1 < min(heads.min(), ffn.min()) and heads.max() < 1 and (steps == 1).all()
    wanted = student(**inputs_of(batch), heads=heads[None], ffn=ffn[None]).logits
    mine.fold()
    torch.testing.assert_close(student(**inputs_of(batch)).logits, wanted)


# ----------------------------------------------------------------------------------------------------------- callback

EPOCHS, BATCHES = 6, 4
DATA = SimpleNamespace(
    sample_batches=lambda *_: batches((4, 3), seed=3), fixed_batches=lambda *_: batches((4, 4), seed=2)
)


class Learning(Module):
    """A user's module that trains gates as the protocol says."""

    gates = None

    def step(self, batch) -> torch.Tensor:
        outputs = self.student(**inputs(batch), rate=True, **self.gates.relaxed())
        return self.sample_loss(batch, outputs).mean() + self.gates.penalty(outputs, tokens(batch))


@pytest.fixture(autouse=True)
def decide_often(monkeypatch) -> None:
    """At each epoch of few steps."""
    monkeypatch.setattr(budgets, "MIN_STEPS_APART", 1)


def callback(share: float, **options) -> BudgetPruning:
    common = {
        "min_ffn": 4,
        "sentences": 8,
        "measured": 7,
        "batch_size": 4,
        "dense_shape": TEACHER,
        "settle": 3,
        "end": 4,
    }
    return BudgetPruning(share=share, **(common | options))


def fit(module, mine: BudgetPruning, epochs=range(EPOCHS), stop=None) -> list[float]:
    """Costs at the epochs' starts; `stop`: (epoch, step) after which a checkpoint is returned instead."""
    optimizer = torch.optim.SGD(module.student.parameters(), lr=1e-2)
    costs = []
    for epoch in epochs:
        trainer = SimpleNamespace(
            current_epoch=epoch, max_epochs=EPOCHS, sanity_checking=False, datamodule=DATA, num_training_batches=BATCHES
        )
        if mine.gates is None:
            mine.setup(trainer, module, "fit")
            mine.on_train_start(trainer, module)
        mine.on_train_epoch_start(trainer, module)
        costs.append(mine.value)
        for i, batch in enumerate(batches((3,) * BATCHES, seed=epoch)):
            trainer.global_step = epoch * BATCHES + i
            torch.manual_seed(trainer.global_step)  # as a checkpoint restores it
            mine.on_train_batch_start(trainer, module, batch, i)
            optimizer.zero_grad()
            module.step(batch).backward()
            optimizer.step()
            mine.on_train_batch_end(trainer, module, None, batch, i)
        mine.on_train_epoch_end(trainer, module)
    return costs


def state(module) -> dict:
    return {name: x.clone() for name, x in module.student.state_dict().items()}


@pytest.mark.parametrize("kinds", [("heads", "ffn", "steps"), ("heads", "ffn")])
def test_the_goal_is_met_and_kept(kinds) -> None:
    module = Learning(make(1, (4, 4, 4)))
    module.student.heads[0, 1], module.student.ffn[1, 3:9] = 0, 0  # what is pruned before stays so
    goal = 0.4 * meter().value(module.student)
    mine = callback(goal, candidates=kinds)
    costs = fit(module, mine)
    assert costs[3] <= goal and costs[3] >= goal * (1 - 2 * TOLERANCE)
    assert meter().value(module.student) == mine.value <= goal
    assert not mine.gates.learning and set(masks_of(module.student).tolist()) <= {0.0, 1.0}
    assert ("steps" in kinds) or module.student.steps == [4, 4, 4]
    assert module.logged["compress/multiplier"] == mine.gates.multiplier > 0
    assert module.student.heads[0, 1] == 0 and not module.student.ffn[1, 3:9].any()
    assert mine.report(mine.value)["goal"] == pytest.approx(goal)


def test_a_decision_measures_once(monkeypatch) -> None:
    """Each measurement is a forward of all its sentences."""
    measured, value = [], CostMeter.value
    monkeypatch.setattr(CostMeter, "value", lambda *args: measured.append(1) or value(*args))
    module, mine = Learning(make(1, (4, 4, 4))), callback(0.4 * meter().value(make(1, (4, 4, 4))))
    fit(module, mine, epochs=range(2))
    before = len(measured)
    fit(module, mine, epochs=range(2, 3))
    assert len(measured) == before + 1


def test_steps_alone_and_latency() -> None:
    module = Learning(make(1, (4, 4, 4)))
    mine = callback(0.5, candidates=("steps",), target="latency", relative_to="student")
    fit(module, mine)
    assert sum(module.student.steps) == 6 == mine.value and module.student.heads.all() and module.student.ffn.all()
    with pytest.raises(InputError, match="the lowest value that can be reached"):
        fit(Learning(make(1, (4, 4, 4))), callback(1e-5, candidates=("steps",)))


def test_a_resumed_stage_is_the_undisturbed_one() -> None:
    """From the callback's state alone, in the learning epochs and after them."""
    plain = Learning(make(1, (4, 4, 4)))
    goal = 0.4 * meter().value(plain.student)
    first = callback(goal)
    fit(plain, first)
    for cut in (2, 4):
        begun, mine = Learning(make(1, (4, 4, 4))), callback(goal)
        fit(begun, mine, range(cut))
        saved = copy.deepcopy(mine.state_dict())
        again, resumed = Learning(begun.student), callback(goal)
        resumed.load_state_dict(saved)
        fit(again, resumed, range(cut, EPOCHS))
        for name, wanted in state(plain).items():
            assert torch.equal(state(again)[name], wanted), name
        assert torch.equal(resumed.gates.multiplier, first.gates.multiplier) and resumed.value == first.value


def test_final_masks_stay_without_gates() -> None:
    """As in fine-tuning: nothing is drawn, the multiplier keeps firing at the goal."""
    module = Learning(make(1))
    module.student.ffn[:, 20:] = 0
    goal = 0.99 * meter().value(module.student)
    mine = callback(goal, learn=False)
    fit(module, mine)
    assert mine.value <= goal and module.student.steps == [3, 4, 2] and module.student.heads.all()
    assert not module.student.ffn[:, 20:].any()


def test_a_module_without_gates_is_told() -> None:
    trainer = SimpleNamespace(max_epochs=4)
    with pytest.raises(InputError, match="BudgetPruning cannot prune Module: it has no member `gates`"):
        callback(0.1).setup(trainer, Module(make()), "fit")


@pytest.mark.parametrize(("epochs", "when"), [(8, (4, 5)), (3, (1, 1)), (1, (1, 0)), (20, (10, 14))])
def test_when_it_decides(epochs, when, monkeypatch) -> None:
    monkeypatch.setattr("spikeprune.experiment.build.callbacks.teacher_shape", lambda _: TEACHER)
    config, bert = Config(), SimpleNamespace(intermediate_size=F)
    config.stages.budget.value = 0.1
    context = SimpleNamespace(config=config, stage=lambda _: Stage(epochs=epochs), teacher_config=bert)
    (made,) = budget(context, "finetune")
    for _ in range(2):  # a second fit is as the first one
        made.setup(SimpleNamespace(max_epochs=epochs), Learning(make()), "fit")
        assert (made.settled, made.last) == when and not made.learn
    assert budget(context, "budget")[0].learn


@pytest.mark.parametrize(("steps", "epochs"), [(100, range(9)), (99, [0, 2, 4, 6, 8]), (34, [0, 1, 4, 7])])
def test_measurements_are_apart(steps, epochs, monkeypatch) -> None:
    """By 100 steps or more, but for the first, and at the epoch in which units are fixed."""
    monkeypatch.setattr(budgets, "MIN_STEPS_APART", 100)
    mine, decided = callback(0.1, settle=4, end=6), []
    monkeypatch.setattr(mine, "decide", lambda trainer, *_: decided.append(trainer.current_epoch))
    for epoch in range(9):
        trainer = SimpleNamespace(current_epoch=epoch, max_epochs=9, sanity_checking=False, num_training_batches=steps)
        if epoch == 0:
            mine.setup(trainer, Learning(make()), "fit")
        mine.on_train_epoch_start(trainer, Learning(make()))
    assert decided == list(epochs)
