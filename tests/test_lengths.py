"""How long a stage trains: at least its epochs and at least its steps, so that small data sets get more epochs."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from micro import GLUE

from spikeprune.config.load import load
from spikeprune.config.schema import Config
from spikeprune.errors import InputError
from spikeprune.experiment.context import RunContext


def context(examples: int, *overrides: str) -> RunContext:
    """Of a training split of so many examples; nothing else of it is read."""
    raw = SimpleNamespace(splits={"train": SimpleNamespace(labels=[0] * examples)})
    config = load(GLUE, ["preset=tiny", "data.batch_size=10", *overrides])
    return RunContext(config, None, raw, None, None, None, [])


@pytest.mark.parametrize(
    ("examples", "overrides", "epochs"),
    [
        (1000, ["stages.spatial.steps=0"], 3),
        (1000, ["stages.spatial.steps=300"], 3),  # reached in three epochs of 100 steps
        (1000, ["stages.spatial.steps=301"], 4),
        (995, ["stages.spatial.steps=301"], 4),  # the last batch is short, and a step
        (100, ["stages.spatial.steps=301"], 31),
        (100, ["stages.spatial.steps=301", "stages.spatial.batch_size=50"], 151),
        (5, ["stages.spatial.steps=7"], 7),
        (100, ["stages.spatial.steps=301", "stages.spatial.epochs=0"], 0),  # left out
    ],
)
def test_epochs_are_added_until_the_steps_are_reached(examples, overrides, epochs) -> None:
    made = context(examples, "stages.spatial.epochs=3", *overrides)
    assert made.stage("spatial").epochs == epochs
    assert ("spatial" in made.active()) == (epochs > 0)
    written = replace(made.config.stages.temporal, batch_size=made.config.data.batch_size)
    assert made.stage("temporal") == written  # one without steps


def budgeted(*overrides: str) -> Config:
    return load(GLUE, ["task=mrpc", "preset=tiny", "stages.budget.value=0.1", *overrides])


@pytest.mark.parametrize(
    ("overrides", "epochs"),
    [
        ([], (0, 0, 8, 4)),
        (["stages.spatial.epochs=2"], (2, 0, 3, 2)),  # it runs, and the budget takes the other's alone
        (["stages.temporal.epochs=0"], (0, 0, 5, 3)),
        (["stages.budget.epochs=6"], (5, 3, 6, 3)),
    ],
)
def test_a_budget_takes_the_epochs_of_what_it_replaces(overrides, epochs) -> None:
    stages = budgeted(*overrides).stages
    assert tuple(getattr(stages, n).epochs for n in ("spatial", "temporal", "budget", "finetune")) == epochs


def test_a_budget_without_epochs_is_refused() -> None:
    with pytest.raises(InputError, match="whose epochs a budget takes, leave it none; give stages.budget.epochs"):
        budgeted("stages.spatial.epochs=0", "stages.temporal.epochs=0")


def test_the_configuration_itself_keeps_what_was_given() -> None:
    made = context(20, "stages.teacher.epochs=2", "stages.teacher.steps=30")
    assert made.stage("teacher").epochs == 15 and made.stage("teacher") is not made.config.stages.teacher
    assert made.config.stages.teacher.epochs == 2
