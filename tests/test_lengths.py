"""How long a stage trains: at least its epochs and at least its steps, so that small data sets get more epochs."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from micro import GLUE

from spikeprune.config.load import load
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


def test_the_configuration_itself_keeps_what_was_given() -> None:
    made = context(20, "stages.teacher.epochs=2", "stages.teacher.steps=30")
    assert made.stage("teacher").epochs == 15 and made.stage("teacher") is not made.config.stages.teacher
    assert made.config.stages.teacher.epochs == 2
