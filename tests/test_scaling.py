"""Scaling over several devices: the table's figures follow from the seconds, and two processes can be measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spikeprune.experiment.summary import commit

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def scripts(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    import bench_ddp
    import scaling_results

    monkeypatch.setattr(scaling_results, "SCALING", tmp_path / "kept")
    return bench_ddp, scaling_results


def row(devices: int, *, loaded: float, ready: float, unsent: float, same: bool = True, scaling: str = "weak") -> dict:
    """100 steps of 10 sentences a device; of each kind of epoch three, the median as given."""
    seconds = {name: [9.0, x, 0.1] for name, x in (("loaded", loaded), ("ready", ready), ("unsent", unsent))}
    made = {"size": "small", "scaling": scaling, "devices": devices, "batch": 10 * devices}
    return {**made, "sentences": 1000 * devices, "seconds": seconds, "decision": {"seconds": 1.5, "same": same}}


def measurement(*rows: dict, **made) -> dict:
    common = {"hardware": "one GPU", "device": "cuda", "torch": "2", "commit": "0123456789ab", "devices": [1, 2]}
    return {"made": {**common, "steps": 100, "rounds": 3, "seconds": 60.0, **made}, "rows": list(rows)}


ONE, TWO = row(1, loaded=2.5, ready=2.0, unsent=2.0), row(2, loaded=2.5, ready=2.5, unsent=1.9)


def test_figures_follow_from_the_seconds(scripts) -> None:
    """Two devices: 800 sentences a second against 500 of one, 0.8; a quarter of the steps' time is communication."""
    lines = scripts[1].tables([measurement(ONE, TWO)]).splitlines()
    assert lines[0].startswith("one GPU, torch 2, commit `0123456789ab`; epochs of 100 steps, 3 of each kind")
    assert lines[4] == "| small | weak | 1 × 10 | 500 | 1.00 | 400 | 1.00 | - | 20 % | 1.50 |"
    cells = ["2 × 10", "800", "0.80 (at least 0.85: missed)", "800", "1.00 (at least 0.85: met)", "24 %", "0 %", "1.50"]
    assert lines[5] == f"| small | weak | {' | '.join(cells)} |"
    assert "gave the same masks on all processes" in lines[-1]


def test_strong_scaling_has_no_goal_and_other_masks_are_told(scripts) -> None:
    strong = [row(n, loaded=2.0, ready=2.0, unsent=2.0, same=n < 2, scaling="strong") for n in (2, 1)]
    text = scripts[1].tables([measurement(*strong)])
    assert "at least" not in text and "gave **different masks** on all processes" in text
    assert text.index("1 × 10") < text.index("2 × 10")


def test_a_measurement_is_kept_under_its_devices(scripts, tmp_path, capsys) -> None:
    bench_ddp, results = scripts
    assert results.kept_tables() == results.NONE_YET
    file = tmp_path / "new.json"
    file.write_text(json.dumps(measurement(ONE, TWO)))
    assert bench_ddp.main(["--keep", str(file)]) == 0
    assert (tmp_path / "kept" / "cuda-1-2.json").is_file()
    assert results.kept_tables() == results.tables([measurement(ONE, TWO)])
    file.write_text(json.dumps(measurement(ONE, commit="0123456789ab-dirty")))
    assert bench_ddp.main(["--keep", str(file)]) == 2
    assert "made by commit 0123456789ab-dirty; measure again" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--devices", "2 4"], 'give rising numbers that begin with 1, such as "1 2 4"'),
        (["--devices", "1 two"], "give rising numbers"),
        (["--devices", "1 99"], "fewer, or --accelerator cpu"),
        (["--sizes", "minlm"], "unknown size 'minlm'; known: tiny, minilm, base (did you mean minilm"),
        (["--steps", "0"], "--steps must be at least 1"),
        (["--whole-batch", "1"], "--whole-batch 1: has no sentence for each of 2 devices"),
    ],
)
def test_what_cannot_be_measured_is_refused(scripts, capsys, options, words) -> None:
    place = [] if "99" in options[1] else ["--accelerator", "cpu"]
    assert scripts[0].main([*options, *place]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_processes_are_measured_beside_one(scripts, tmp_path, capfd) -> None:
    """On the CPU, over gloo: real training, whose speed says nothing."""
    file = tmp_path / "scaling.json"
    small = ["--sentences", "4", "--whole-batch", "6", "--steps", "3", "--rounds", "1", "--json", str(file)]
    assert scripts[0].main(["--sizes", "tiny", "--accelerator", "cpu", *small]) == 0
    found = json.loads(file.read_text())
    rows = {(found["scaling"], found["devices"]): found for found in found["rows"]}
    assert {key: (row["batch"], row["sentences"]) for key, row in rows.items()} == {
        ("weak", 1): (4, 12),
        ("weak", 2): (8, 24),
        ("strong", 1): (6, 18),
        ("strong", 2): (6, 18),
    }
    assert all(len(times) == 1 and times[0] > 0 for row in rows.values() for times in row["seconds"].values())
    assert all(row["decision"]["same"] and row["decision"]["seconds"] > 0 for row in rows.values())
    assert found["made"]["commit"] == commit() and found["made"]["devices"] == [1, 2]
    assert scripts[1].tables([found]) in capfd.readouterr().out
