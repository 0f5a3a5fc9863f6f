"""Trials of a local sweep that have no score to compare: failed, and listed as such; from records, without a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_sweep import tiny, write

from spikeprune.errors import InputError
from spikeprune.files import jsonfile
from spikeprune.files.atomic import write_json
from spikeprune.integrations.sweeps import spec, study
from spikeprune.integrations.sweeps.local import Driver
from spikeprune.integrations.sweeps.report import report
from spikeprune.report.results import COSTS

RECORD = {
    "fidelity": {},
    "weights": "0",
    "steps": 1,
    "metrics": {"accuracy": 0.5},
    "main": 0.5,
    "cost": dict.fromkeys(COSTS, 2.0),
}
STUDENT = {**RECORD, "heads": [1], "ffn": [4], "t_steps": [4, 4]}
DATA = {"source": "dir", "origin": "here", "banner": "data: here"}


@pytest.fixture
def driver(tmp_path, glue) -> Driver:
    sweep = spec.read(write(tmp_path / "tiny.yaml", tiny(glue)))
    (tmp_path / "out").mkdir()
    return Driver(sweep, tmp_path / "out", 4, 1)


def ended(driver: Driver, text: str = jsonfile.dumps(STUDENT)):
    """The next trial as it leaves its run directory, with this record of its last stage."""
    trial = driver.choose()
    for name in ("teacher", "spatial"):
        trial.run.make_stage(name)
    write_json(trial.run.stage("teacher") / "record.json", RECORD)
    (trial.run.stage("spatial") / "record.json").write_text(text)
    facts = {"task": "sst2", "preset": "tiny", "data": DATA, "teacher": RECORD, "final": "spatial"}
    write_json(trial.run.summary, {**facts, "stages": {"spatial": STUDENT}})
    assert driver.settle(trial)
    return trial


LACKING = {
    "null": (jsonfile.dumps({**STUDENT, "main": None}), "has no result/main of stage spatial"),
    "nan": (json.dumps({**STUDENT, "main": float("nan")}), "record.json: is damaged (holds NaN"),
    "no energy": (
        jsonfile.dumps({**STUDENT, "cost": {**STUDENT["cost"], "energy_pj": float("inf")}}),
        "has no result/energy_pj of stage spatial",
    ),
    "cut": ("{", "record.json: is damaged"),
}


@pytest.mark.parametrize("case", LACKING)
def test_a_trial_without_a_score_has_failed_and_is_listed(driver, capsys, case) -> None:
    text, why = LACKING[case]
    ended(driver)
    bad = ended(driver, text)
    assert driver.state(bad) == "RUNNING"  # so the next start tries it again
    assert report(driver) == 1
    said = capsys.readouterr()
    (row,) = [line.split() for line in said.out.splitlines() if " failed " in line and line.split()[0] == "1"]
    assert row[:4] == ["1", "0.5", "0.4", "failed"] and why in said.out and "error: 1 trial failed" in said.err
    kept = json.loads((driver.folder / "results.json").read_text(), parse_constant=pytest.fail)
    assert [r["trial"] for r in kept["trials"]] == [0] == kept["front"]
    assert kept["failed"][0]["trial"] == 1 and why in kept["failed"][0]["why"]
    assert kept["failed"][0]["values"] == {"stages.spatial.heads": 0.5, "stages.spatial.ffn": 0.4}


def test_a_sweep_of_failures_alone_lists_them(driver, capsys) -> None:
    ended(driver, LACKING["null"][0])
    assert report(driver) == 1
    assert "trial 0 failed: " in capsys.readouterr().out and not (driver.folder / "front.svg").exists()


def test_a_damaged_journal_and_sweep_are_named(driver, tmp_path) -> None:
    (tmp_path / "out" / "journal.log").write_text("{broken\n{}\n")
    with pytest.raises(InputError, match="journal.log: is damaged .* to begin the sweep again"):
        study.open_study(driver.sweep, tmp_path / "out")


@pytest.mark.parametrize("bounds", [{"min": 0.1, "max": float("inf")}, {"min": float("nan"), "max": 1.0}])
def test_a_range_that_is_not_finite_is_refused(tmp_path: Path, glue, bounds) -> None:
    tree = tiny(glue, method="random", parameters={"stages.spatial.heads": bounds})
    with pytest.raises(InputError, match="stages.spatial.heads: (min, max and q must be finite|needs min below max)"):
        spec.read(write(tmp_path / "s.yaml", tree))
