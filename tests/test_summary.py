"""What a summary says of the settings: the same for runs that may be averaged, another for any other run."""

from __future__ import annotations

import pytest

from spikeprune.config.load import load, read_resolved, to_yaml
from spikeprune.config.schema import Student
from spikeprune.experiment.summary import settings
from tests.micro import GLUE, only

BASE = ["task=mrpc", "preset=minilm", "teacher.checkpoint=here/minilm", "data.source=dir", "data.dir=here/glue"]


def digest(*changes: str) -> str:
    return settings(load(GLUE, [*BASE, *changes]))


@pytest.mark.parametrize(
    "changes",
    [
        ["seed=3"],
        ["run.dir=elsewhere", "run.wandb=auto"],
        ["teacher.checkpoint=there/minilm", "data.dir=there/glue"],
        ["stages.budget.lr=1.0e-5"],  # does not run
        only("teacher", "internal_kd", "prediction_kd", "spatial", "temporal", "finetune"),  # what runs anyway
        ["student.leak=1.0"],  # the default
    ],
    ids=str,
)
def test_what_may_differ_between_seeds_of_a_mean(changes) -> None:
    assert digest(*changes) == digest()


@pytest.mark.parametrize(
    "changes",
    [
        ["stages.finetune.lr=1.0e-5"],
        ["stages.finetune.losses.additions=1"],
        ["stages.spatial.heads=0.4"],
        ["task=cola"],
        ["run.precision=32-true"],
        ["teacher.checkpoint=here/another"],
        only("teacher", "internal_kd", "prediction_kd", "spatial", "finetune"),
    ],
    ids=str,
)
def test_what_makes_another_run(changes) -> None:
    assert digest(*changes) != digest()


def test_a_default_that_changes_makes_other_settings(monkeypatch) -> None:
    """A run of another version, whose default was another, is not of these settings, though no file names the key."""
    before = digest()
    theirs = tuple(0.5 if value == Student.leak else value for value in Student.__init__.__defaults__)
    changed = load(GLUE, [*BASE, "student.leak=0.5"])
    monkeypatch.setattr(Student.__init__, "__defaults__", theirs)
    assert Student().leak == 0.5 and settings(changed) != before


def test_a_saved_configuration_has_the_same_settings(tmp_path) -> None:
    config = load(GLUE, BASE)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert settings(read_resolved(tmp_path / "config.yaml")) == settings(config)
