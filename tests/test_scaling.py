"""Scaling over several devices: the table's figures follow from the seconds, and two processes can be measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from micro import micro, only, write_sst2

from spikeprune.errors import InputError
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
    assert lines[0].startswith("one GPU, torch 2, commit `0123456789ab`; 3 × 100 steps of each kind")
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
    assert (tmp_path / "kept" / "cuda-1-2-small.json").is_file()
    assert results.kept_tables() == results.tables([measurement(ONE, TWO)])
    file.write_text(json.dumps(measurement(ONE, commit="0123456789ab-dirty")))
    assert bench_ddp.main(["--keep", str(file)]) == 2
    assert "made by commit 0123456789ab-dirty; measure again" in capsys.readouterr().err


def run(devices: int, **changes) -> dict:
    """A short run on several devices, as good as one on one."""
    made = {"devices": devices, "killed": None, "task": "sst2", "preset": "tiny", "data": "dir", "metric": "accuracy"}
    made |= {"score": 0.85, "interval": [0.8, 0.9], "heads": [2, 1], "ffn": [9, 9], "t_steps": [2, 2, 2], "ac": 100.0}
    return {**made, "main": 0.85, "steps": {"teacher": 30, "spatial": 12}, "seconds": 20.0, **changes}


def test_runs_are_compared_with_that_of_one_device(scripts) -> None:
    runs = [
        run(1),
        run(2, killed="spatial", score=0.8, ac=101.0),
        run(4, score=0.7, heads=[2, 2], steps={"teacher": 42}),
    ]
    found = {"made": measurement()["made"], "runs": runs}
    lines = scripts[1].tables([found]).splitlines()
    assert lines[0].endswith("; sst2, preset tiny, data dir; 60 s in all.")
    equal = "| 2 | spatial | accuracy 80.0 | 80.0–90.0: yes | 42 | 3, 18 | 2 2 2 | 1.010 | 20 |"
    other = "| 4 | - | accuracy 70.0 | **80.0–90.0: no** | **42** | **4, 18** | 2 2 2 | 1.000 | 20 |"
    assert lines[5:7] == [equal, other]


def fails_after(parts):
    yield from parts
    raise InputError("no space left")


def test_runs_that_ended_before_a_failure_are_kept(scripts, tmp_path, capsys, monkeypatch) -> None:
    file, runs = tmp_path / "runs.json", [run(1), run(2)]
    monkeypatch.setattr(scripts[0], "check", lambda *_: fails_after(runs))
    assert scripts[0].main(["--check", "--accelerator", "cpu", "--json", str(file)]) == 2
    assert json.loads(file.read_text())["runs"] == runs and "| 2 | - |" in capsys.readouterr().out


@pytest.mark.parametrize(("apart", "code"), [({}, 0), ({"t_steps": [3, 2, 2], "killed": "spatial"}, 1)])
def test_the_exit_code_tells_whether_all_runs_are_as_one(scripts, capsys, monkeypatch, apart, code) -> None:
    monkeypatch.setattr(scripts[0], "check", lambda *_: iter([run(1), run(2, **apart)]))
    assert scripts[0].main(["--check", "--accelerator", "cpu"]) == code
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"not as on one device: {'T of 2 devices, killed in spatial' if code else 'nothing'}"


@pytest.mark.parametrize(("failure", "same", "code"), [(0, True, 0), (0, False, 1), (3, True, 3)])
def test_what_was_measured_before_a_failure_is_kept(scripts, tmp_path, monkeypatch, failure, same, code) -> None:
    two = row(2, loaded=2.5, ready=2.5, unsent=1.9, same=same)
    parts = {1: (0, measurement(ONE)), 2: (failure, measurement(two))}
    monkeypatch.setattr(scripts[0], "measured", lambda args, count, file: parts[count])
    file = tmp_path / "scaling.json"
    assert scripts[0].main(["--accelerator", "cpu", "--json", str(file)]) == code
    assert json.loads(file.read_text())["rows"] == [ONE, two]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--devices", "2 4"], 'give rising numbers that begin with 1, such as "1 2 4"'),
        (["--devices", "1 two"], "give rising numbers"),
        (["--devices", "1 99"], "fewer, or --accelerator cpu"),
        (["--sizes", "minlm"], "unknown size 'minlm'; known: tiny, minilm, base (did you mean minilm"),
        (["--steps", "0"], "--steps must be at least 1"),
        (["--check", "run.devices=2"], "run.devices=2: the check sets this itself"),
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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_runs_of_one_and_two_processes_are_killed_and_compared(scripts, tmp_path, capfd, monkeypatch) -> None:
    """Rounding alone differs: all three runs have the same steps, masks and time steps."""
    monkeypatch.setattr(sys.modules["scaling_check"], "EVERY", 2)
    words = [item for item in micro(tmp_path / "run", write_sst2(tmp_path / "glue")) if not item.startswith("run.")]
    words += [*only("teacher", "internal_kd", "spatial"), "teacher.dropout=0.0", "data.replace_words=0"]
    words += ["stages.internal_kd.epochs=3", "stages.spatial.epochs=2", "run.precision=64-true"]
    file = tmp_path / "runs.json"
    assert scripts[0].main(["--check", "--accelerator", "cpu", "--json", str(file), *words]) == 0
    runs = json.loads(file.read_text())["runs"]
    assert [(run["devices"], run["killed"]) for run in runs] == [(1, None), (2, None), (2, "internal_kd")]
    for run in runs:
        assert all(run[key] == runs[0][key] for key in ("steps", "heads", "ffn", "t_steps", "score"))
        assert run["ac"] == pytest.approx(runs[0]["ac"], rel=1e-6)
    assert "**" not in capfd.readouterr().out
