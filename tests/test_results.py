"""The README's figures are those of the summaries that stand beside the script that makes them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_the_readme_is_what_the_summaries_give() -> None:
    script = [sys.executable, str(ROOT / "experiments" / "results.py"), "--check"]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def results(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    import results

    monkeypatch.setattr(results, "ABLATIONS", tmp_path / "kept")
    return results


def test_an_ablation_is_kept_and_told_in_its_order(results, tmp_path) -> None:
    """Of a kept run, its energy a third in `spatial`, seed 1."""
    plain = json.loads(sorted(results.KEPT.glob("*.json"))[0].read_text())
    for name, seed, factor in (("spatial", 1, 1 / 3), ("none", 0, 1), ("none", 1, 1), ("shared", 0, 1)):
        own = json.loads(json.dumps(plain)) | {"seed": seed}
        own["stages"][own["final"]]["cost"]["energy_pj"] *= factor
        run = tmp_path / "runs" / f"s{seed}" / name
        run.mkdir(parents=True)
        (run / "summary.json").write_text(json.dumps(own))
    results.keep_ablation(tmp_path / "runs")
    told = results.ablation_tables()
    rows = [line.split("|")[1].strip() for line in told.splitlines() if line.startswith("| ")][2:]
    assert rows == ["dense teacher", "spiking student", "none", "spatial"]
    assert "cheapest first: spatial." in told and plain["commit"] in told and plain["hardware"] in told
    assert "| agreement | KL |" not in told  # of runs that did not measure it
    spatial = tmp_path / "runs" / "s1" / "spatial" / "summary.json"
    newer = json.loads(spatial.read_text())
    newer["stages"][newer["final"]]["fidelity"] = {"agreement": 0.9, "divergence": 0.25}
    spatial.write_text(json.dumps(newer))
    results.keep_ablation(tmp_path / "runs")
    row = next(line for line in results.ablation_tables().splitlines() if line.startswith("| spatial |"))
    assert "| 90.0 | 0.250 |" in row
    tagged = f"{plain['task']}-{plain['preset']}-at-0.07"
    (tmp_path / "runs").rename(tmp_path / tagged)
    results.keep_ablation(tmp_path / tagged)
    kept = f"{plain['task']}-{plain['preset']}-{plain['data']['source']}"
    assert sorted(path.stem for path in results.ABLATIONS.iterdir()) == [kept, f"{kept}-at-0.07"]
    heads = [line for line in results.ablation_tables().splitlines() if line.startswith(plain["task"])]
    assert [head.endswith(" · at-0.07") for head in heads] == [False, True]


def test_seeds_on_different_data_have_no_mean(results, capsys) -> None:
    plain = results.summaries()[0]
    other = plain | {"seed": 1, "data": plain["data"] | {"fingerprint": "another"}}
    with pytest.raises(SystemExit):
        results.agree([plain, other], "cola")
    assert "were run on different data" in capsys.readouterr().err
    for source, said in (("embedded", ""), ("dir", "9 training examples drawn with seed 1")):  # each seed has its own
        drawn = [run | {"data": run["data"] | {"source": source, "banner": said}} for run in (plain, other)]
        results.agree(drawn, "cola")


def test_a_folder_without_runs_is_refused(results, tmp_path, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        results.keep_ablation(tmp_path)
    assert ended.value.code == 2 and "no finished run" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), (["--chekc"], 2), (["--check", "runs/a"], 2)])
def test_its_command_line(results, arguments, code) -> None:
    with pytest.raises(SystemExit) as ended:
        results.main(arguments)
    assert ended.value.code == code


@pytest.mark.parametrize("commit", ["unknown", "0123456789ab-dirty"])
def test_what_no_commit_has_measured_is_refused(results, tmp_path, capsys, monkeypatch, commit) -> None:
    monkeypatch.setattr(results, "KEPT", tmp_path / "kept")
    plain = json.loads(sorted((ROOT / "experiments" / "results").glob("*.json"))[0].read_text())
    run = tmp_path / "ablation" / "s0" / "none"
    run.mkdir(parents=True)
    (run / "summary.json").write_text(json.dumps(plain | {"commit": commit}))
    for keep, folder in ((results.keep, run), (results.keep_ablation, tmp_path / "ablation")):
        with pytest.raises(SystemExit) as ended:
            keep(folder)
        assert ended.value.code == 2 and f"made by commit {commit}" in capsys.readouterr().err
    assert not (tmp_path / "kept").exists()


def test_seeds_on_one_hardware_have_a_mean_that_names_every_commit(results) -> None:
    """Scores of 80 and 84: 82, deviation √8; a run on other hardware stands by itself."""
    plain = results.summaries()[0]
    runs = []
    for seed, score, commit, hardware in ((0, 0.8, "a", "x"), (1, 0.84, "b", "x"), (2, 0.5, "b", "y")):
        own = json.loads(json.dumps(plain)) | {"seed": seed, "commit": commit, "hardware": hardware}
        own["stages"][own["final"]]["metrics"][results.metric_of(own)] = score
        runs.append(own)
    lines = results.table(runs).splitlines()[2:]
    assert len(lines) == 4 and "mean of 2 seeds" in lines[2] and "| 82.0 ± 2.8 |" in lines[2]
    assert lines[2].endswith("| x | `a`, `b` |")


def test_seeds_of_different_settings_have_no_mean(results, tmp_path, capsys) -> None:
    """Those of unknown settings, older ones, do not matter."""
    plain = results.summaries()[0]
    runs = [plain | {"seed": 0}, *(plain | {"seed": seed, "settings": said} for seed, said in ((1, "a"), (2, "a")))]
    assert "mean of 3 seeds" in results.table(runs)
    runs.append(plain | {"seed": 3, "settings": "b"})
    with pytest.raises(SystemExit) as ended:
        results.table(runs)
    assert ended.value.code == 2 and "seeds 1, 2 and seeds 3 were run with different" in capsys.readouterr().err
    for run in runs:
        for name in ("none", "all"):
            folder = tmp_path / f"s{run['seed']}" / name
            folder.mkdir(parents=True)
            (folder / "summary.json").write_text(json.dumps(run | {"settings": "a"} if name == "none" else run))
    with pytest.raises(SystemExit):
        results.keep_ablation(tmp_path)
    assert ", all: seeds 1, 2 and seeds 3 were" in capsys.readouterr().err and not results.ABLATIONS.exists()


def test_a_score_is_the_one_that_the_task_is_ranked_by(results) -> None:
    """One of several metrics where GLUE takes it alone, accuracy where it takes the mean of two."""
    found = {"accuracy": 0.7, "matthews": 0.3, "f1": 0.8}
    told = [
        results.metric_of({"main_metric": main, "teacher": {"metrics": found}}) for main in ("matthews", "accuracy+f1")
    ]
    assert told == ["matthews", "accuracy"]


def test_few_bit_weights_have_a_row_of_their_own(results) -> None:
    """Kept beside the float run of the same seed; its encoder in a sixteenth of the bytes."""
    plain = next(s for s in results.summaries() if s["stages"][s["final"]]["encoder_weights"]["kind"] == "float")
    few = json.loads(json.dumps(plain))
    whole = few["stages"][few["uncompressed"]]["encoder_weights"]["bytes"]
    few["stages"][few["final"]]["encoder_weights"] |= {"kind": "ternary", "bytes": whole // 16}
    lines = results.table([plain, few]).splitlines()[2:]
    assert len(lines) == 2 and "ternary weights" in lines[1] and "ternary" not in lines[0] and "| 16.0 |" in lines[1]
