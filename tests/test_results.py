"""The result tables of the documentation come from kept summaries of runs, each of a commit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from spikeprune.report.figures import _kinds

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "experiments"))

import kept_results  # noqa: E402
import results  # noqa: E402
from energy_results import energy_table, pays_table, rate_figure, rate_tables, ratio_table  # noqa: E402
from result_tables import (  # noqa: E402
    NOTHING,
    ablation_tables,
    budget_tables,
    compressed_table,
    form,
    metrics_of,
    published_table,
    run_table,
    score_table,
    setting_name,
)

from spikeprune.errors import InputError  # noqa: E402
from spikeprune.report.markdown import between  # noqa: E402


@pytest.mark.parametrize("script", ["experiments/results.py", "docs/figures/draw.py"])
def test_pages_and_figures_are_what_the_scripts_make(script) -> None:
    done = subprocess.run([sys.executable, str(ROOT / script), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def summary(**changes) -> dict:
    """A run of two layers whose student has a quarter of the teacher's energy, the compressed one a fiftieth."""

    def row(accuracy: float, energy: float, **more) -> dict:
        cost = {"ac": 8, "mac": 1, "energy_pj": energy, "rate": 0.25, "bytes": 9}
        cost |= {"latency_steps": 12, "latency_stages": 44, "latency_overlapped": 14}
        return {"metrics": {"accuracy": accuracy}, "main": accuracy, "cost": cost, "seconds": 60.0, **more}

    def student(accuracy: float, energy: float, heads: int) -> dict:
        weights = {"kind": "float", "bytes": 2 * 4 * (4 * 64 * 65 + 2 * 64 * 128 + 64 + 128)}
        form = {"heads": [heads] * 2, "ffn": [128, 64], "t_steps": [4, 4, 4], "encoder_weights": weights}
        return row(accuracy, energy, energy_saving=400 / energy, **form)

    made = {
        "task": "sst2",
        "preset": "minilm",
        "seed": 0,
        "data": {"source": "dir", "origin": "glue", "fingerprint": "0", "banner": "data: sst2"},
        "shape": {"layers": 2, "hidden": 64, "heads": 4, "ffn": 128},
        "main_metric": "accuracy",
        "settings": "a",
        "commit": "0123456789ab",
        "hardware": "one GPU",
        "versions": {},
        "teacher": row(0.9, 400.0),
        "stages": {"prediction_kd": student(0.88, 100.0, 4), "finetune": student(0.86, 8.0, 2)},
        "uncompressed": "prediction_kd",
        "final": "finetune",
    }
    return json.loads(json.dumps(made | changes))


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(kept_results, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(kept_results, "ABLATIONS", tmp_path / "kept" / "ablation")
    monkeypatch.setattr(kept_results, "BUDGETS", tmp_path / "kept" / "budgets")


def write(run: Path, found: dict) -> Path:
    run.mkdir(parents=True)
    (run / "summary.json").write_text(json.dumps(found))
    return run


def test_a_run_is_kept_and_has_a_row_beside_published_ones(tmp_path) -> None:
    kept_results.keep(write(tmp_path / "run", summary()))
    assert [path.name for path in kept_results.KEPT.iterdir()] == ["sst2-minilm-dir-s0.json"]
    (row,) = run_table(kept_results.summaries()).splitlines()[2:]
    assert row.startswith("| minilm | sst2 | 0 | 90.0 | 88.0 | 86.0 | - | 25.0 % | 4 4 4 | 50 / 75 / 100 | 3.0 |")
    assert " | sst2 | mrpc | rte | stsb | cola | qnli | qqp | mnli | " in score_table(kept_results.summaries())
    head, _, teacher, student, compressed, *peers = score_table(kept_results.summaries(), every=False).splitlines()
    assert head == "|  | network | sst2 | commit or venue |"
    assert teacher == "| minilm, dense teacher | no spikes | 90.0 | `0123456789ab` |"
    assert student == "| minilm, spiking student | 2 × 64, T 4, float weights | 88.0 | `0123456789ab` |"
    assert compressed == "| minilm, compressed | 2 × 64, T 4, float weights | 86.0 | `0123456789ab` |"
    assert "| SpikingBERT | 4 layers, binary spikes, per_step, T 16 to 125 | 88.19 | AAAI 2024 |" in peers
    (row,) = compressed_table(kept_results.summaries()).splitlines()[2:]
    assert row == "| minilm | sst2 | 1 | 90.0 | 88.0 | 86.0 | 25.0 % | 4 | 50 / 75 / 100 | 12 / 44 / 14 | 1.0 / 1.0 |"


def test_a_row_says_how_sure_its_scores_are() -> None:
    found = summary()
    found["teacher"]["intervals"] = {"accuracy": [0.88, 0.919]}
    found["stages"]["prediction_kd"]["mcnemar"] = {"first": 9, "second": 2, "p": 0.065}
    found["stages"]["finetune"] |= {"intervals": {"accuracy": [0.84, 0.88]}, "mcnemar": {"p": 1e-5}}
    (row,) = run_table([found]).splitlines()[2:]
    assert "| 90.0 (88.0–91.9) | 88.0 | 86.0 (84.0–88.0) | <0.001 |" in row
    (row,) = run_table([found | {"final": "prediction_kd"}]).splitlines()[2:]
    assert "| 90.0 (88.0–91.9) | 88.0 | - | 0.065 |" in row


def with_energy(equal_bits: float | None, seed: int = 0) -> dict:
    """Under one model: 8 pJ against 400 and 80 of the teacher, and `equal_bits`."""
    found = summary(seed=seed)
    energies = {"teacher": 400.0, "masked_teacher": 80.0, "equal_bits": equal_bits}
    divided = {name: None if pj is None else pj / 8 for name, pj in energies.items()}
    row = {"student": 8.0, **energies, "ratios": divided, "pays_below": equal_bits and 0.05 * equal_bits, "parts": {}}
    found["stages"]["finetune"]["energy"] = {"memory": row}
    return found


def test_energy_is_shown_against_every_opponent() -> None:
    groups = [[with_energy(4.0), with_energy(2.0, seed=1)], [with_energy(None)], [summary()]]
    row, other = ratio_table(groups).splitlines()[2:]
    assert row == "| minilm | sst2 | 90.0 → 86.0 | 25.0 % | 50.0 / 10.0 / 0.38 |" and other.endswith(
        "| 50.0 / 10.0 / - |"
    )
    assert ratio_table(groups, ["memory"], ["equal_bits"]).splitlines()[2].endswith("| 25.0 % | 0.38 |")
    assert energy_table(groups).splitlines()[2].endswith("| 8e-06 / 0.0004 |")
    assert [line.split("|")[5].strip() for line in pays_table(groups).splitlines()[2:]] == ["15.0 %", "-"]
    assert ratio_table([[summary()]]).startswith("No run has been kept")


def test_firing_rates_are_kept_and_have_a_table_and_a_figure(tmp_path, monkeypatch) -> None:
    def row(name: str, rate: float) -> dict:
        final = with_energy(80 * rate)["stages"]["finetune"]
        energy = {"memory": final["energy"]["memory"], "convention": final["energy"]["memory"]}
        return {**final, "name": name, "rate": rate, "teacher": 0.9, "energy": energy}

    limits, budgets = [row("base", 0.2), row("limit 0.02", 0.05)], [row("budget, memory", 0.1)]
    found = {
        "limits": limits,
        "budgets": budgets,
        "hardware": "one GPU",
        "commit": "0123",
        "task": "sst2",
        "preset": "x",
        "seed": 3,
        "data": "sst2 from directory glue",
    }
    table = rate_tables(found)
    assert "| limit 0.02 | 86.0 | 5.0 % | 0.50 | 0.50 |" in table
    assert table.startswith("sst2, preset x, sst2 from directory glue; dense teacher 90.0; seed 3, one GPU, commit")
    assert "| budget, memory | 86.0 | 10.0 % | 2.00 % | 2.00 % | 2 2 | 128 64 | 4 4 4 |" in table
    monkeypatch.setattr(kept_results, "RATES", tmp_path / "kept")
    (tmp_path / kept_results.SWEPT).write_text(json.dumps(found))
    kept_results.keep_rates(tmp_path)
    assert json.loads((tmp_path / "kept" / "sst2-x.json").read_text()) == found
    rate_figure(found, tmp_path / "rates.svg")
    assert "firing rate" in (tmp_path / "rates.svg").read_text(encoding="utf-8")


def test_generated_data_have_no_published_scores() -> None:
    generated = summary(data={"source": "embedded", "banner": "", "fingerprint": "0"})
    assert "| minilm, generated data (not GLUE) | sst2 |" in compressed_table([generated])
    assert score_table([generated]) == NOTHING and "generated" not in score_table([summary(), generated])


def test_without_runs_the_tables_say_so() -> None:
    assert run_table([]) == score_table([]) == compressed_table([]) == ablation_tables() == budget_tables() == NOTHING


def test_what_is_not_verified_is_marked() -> None:
    spikingbert = next(line for line in score_table([summary()]).splitlines() if line.startswith("| SpikingBERT"))
    assert "| 88.19 | 79.17* | 66.06 | 82.2* | - |" in spikingbert
    sorbet = next(line for line in published_table().splitlines() if line.startswith("| Sorbet"))
    assert "| 27.16 × less than BERT | convention |" in sorbet


def test_an_ablation_is_kept_and_shown_in_its_order(tmp_path) -> None:
    for name, seed, factor in (("spatial", 1, 1 / 3), ("none", 0, 1), ("none", 1, 1), ("shared", 0, 1)):
        own = summary(seed=seed)
        own["stages"][own["final"]]["cost"]["energy_pj"] *= factor
        write(tmp_path / "runs" / f"s{seed}" / name, own)
    kept_results.keep_ablation(tmp_path / "runs")
    shown = ablation_tables()
    rows = [line.split("|")[1].strip() for line in shown.splitlines() if line.startswith("| ")][2:]
    assert rows == ["dense teacher", "spiking student", "none", "spatial"]
    assert "cheapest first: spatial." in shown and "one GPU, commit `0123456789ab`" in shown
    tagged = "sst2-minilm-at-0.07"
    (tmp_path / "runs").rename(tmp_path / tagged)
    kept_results.keep_ablation(tmp_path / tagged)
    assert sorted(p.stem for p in kept_results.ABLATIONS.iterdir()) == ["sst2-minilm-dir", "sst2-minilm-dir-at-0.07"]
    heads = [line for line in ablation_tables().splitlines() if line.startswith("sst2")]
    assert [head.endswith(" · at-0.07") for head in heads] == [False, True]


def test_a_comparison_of_budgets_is_kept(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(results, "pages", dict)
    monkeypatch.setattr(results, "draw", lambda _: None)
    folder = tmp_path / "budgets" / "minilm"
    for task, way, score in (("sst2", "all", 0.86), ("sst2", "spatial", 0.84), ("stsb", "all", 0.9)):
        own = summary(task=task)
        own["data"]["scored"] = {"validation": 872}
        own["stages"]["finetune"] |= {"main": score, "seconds": 8.0}
        own["stages"]["finetune"]["budget"] = {"share": 0.04, "reported": 0.0404, "why_not": ""}
        write(folder / f"{task}-s0" / f"0.04-{way}", own)
    (folder / kept_results.COMPARED).touch()
    results.make([folder])
    shown = budget_tables()
    assert "preset minilm" in shown and "Made on one GPU, commit `0123456789ab`." in shown
    assert "| 0.04 | all | 86.0 | 90.0 | 88.0 | 2.0 | 1.010 ± 0.000 |" in shown
    assert "| 0.04 | spatial | 84.0 | - | - | - | 1.010 |" in shown  # no mean without stsb
    write(folder / "sst2-s1" / "0.04-all", own | {"commit": "0123456789ab-dirty"})
    with pytest.raises(InputError, match="sst2, seed 1, 0.04-all: made by commit 0123456789ab-dirty"):
        kept_results.keep_budgets(folder)
    with pytest.raises(InputError, match="no finished run"):
        kept_results.keep_budgets(tmp_path)


def test_seeds_on_different_data_have_no_mean() -> None:
    plain, other = summary(), summary(seed=1)
    other["data"]["fingerprint"] = "another"
    with pytest.raises(InputError, match="were run on different data"):
        kept_results.have_a_mean([plain, other], "sst2")
    for changes in ({"source": "embedded"}, {"banner": "9 training examples drawn with seed 1"}):  # each seed its own
        kept_results.have_a_mean([run | {"data": run["data"] | changes} for run in (plain, other)], "sst2")


def test_a_folder_without_runs_is_refused(tmp_path, capsys) -> None:
    assert results.main([str(tmp_path)]) == 2
    assert "no finished run" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), (["--chekc"], 2), (["--check", "runs/a"], 2)])
def test_the_command_line(arguments, code) -> None:
    with pytest.raises(SystemExit) as ended:
        results.main(arguments)
    assert ended.value.code == code


@pytest.mark.parametrize("commit", ["unknown", "0123456789ab-dirty"])
def test_a_run_of_no_commit_is_refused(tmp_path, commit) -> None:
    run = write(tmp_path / "ablation" / "s0" / "none", summary(commit=commit))
    for keep, folder in ((kept_results.keep, run), (kept_results.keep_ablation, tmp_path / "ablation")):
        with pytest.raises(InputError, match=f"made by commit {commit}"):
            keep(folder)
    assert not kept_results.KEPT.exists()


def test_seeds_on_one_hardware_have_a_mean_that_names_every_commit() -> None:
    """Scores of 80 and 84: 82, deviation √8; a run on other hardware stands by itself."""
    runs = []
    for seed, score, commit, hardware in ((0, 0.8, "a", "x"), (1, 0.84, "b", "x"), (2, 0.5, "b", "y")):
        own = summary(seed=seed, commit=commit, hardware=hardware)
        own["stages"]["finetune"]["metrics"]["accuracy"] = score
        runs.append(own)
    lines = compressed_table(runs).splitlines()[2:]
    assert [line.split(" | ")[2] for line in lines] == ["2", "1"] and "| 82.0 ± 2.8 |" in lines[0]
    lines = [line for line in score_table(runs).splitlines() if line.startswith("| minilm, compressed")]
    assert "| 82.0 ± 2.8 |" in lines[0] and lines[0].endswith("| `a`, `b` |") and "| 50.0 |" in lines[1]


def test_seeds_of_different_settings_have_no_mean(tmp_path) -> None:
    runs = [summary(seed=seed) for seed in (1, 2)] + [summary(seed=3, settings="b")]
    assert "| sst2 | 2 |" in compressed_table(runs[:2])
    with pytest.raises(InputError, match="seeds 1, 2 and seeds 3 were run with different"):
        compressed_table(runs)
    for run in runs:
        write(tmp_path / f"s{run['seed']}" / "none", run | {"settings": "a"})
        write(tmp_path / f"s{run['seed']}" / "all", run)
    with pytest.raises(InputError, match=", all: seeds 1, 2 and seeds 3 were"):
        kept_results.keep_ablation(tmp_path)
    assert not kept_results.ABLATIONS.exists()


def test_a_score_is_the_metric_that_glue_ranks_by() -> None:
    """One of several metrics where GLUE takes it alone, accuracy where it takes the mean with F1."""
    mains = ("matthews", "accuracy+f1", "pearson+spearman")
    chosen = [metrics_of({"main_metric": main}) for main in mains]
    assert chosen == [["matthews"], ["accuracy"], ["pearson", "spearman"]]


def regression(seed: int, pearson: float) -> dict:
    """STS-B: both correlations, no classes to test."""
    found = summary(task="stsb", main_metric="pearson+spearman", preset="base", seed=seed)
    found["student"] = {"spikes": "ternary", "coding": "accumulate", "residual": "membrane"}
    for row in (found["teacher"], *found["stages"].values()):
        row["metrics"] = {"pearson": pearson, "spearman": 0.8}
        row["intervals"] = {name: [0.7, 0.9] for name in row["metrics"]}
    found["stages"]["finetune"]["t_steps"] = [4, 3, 2]
    return found


def test_a_regression_has_both_correlations() -> None:
    runs = [regression(0, 0.9), regression(1, 0.8)]
    row, _ = run_table(runs).splitlines()[2:]
    assert row.startswith("| base | stsb | 0 | 90.0 (70.0–90.0) / 80.0 (70.0–90.0) |")
    *_, row = (line for line in score_table(runs).splitlines() if line.startswith("| base"))
    made = "2 × 64, ternary spikes and membrane residuals, accumulate, T 2–4, float weights"
    assert row.startswith(f"| base, compressed | {made} |") and "| 85.0 ± 7.1 / 80.0 ± 0.0 |" in row


def test_runs_of_another_aim_or_size_do_not_replace_each_other(tmp_path) -> None:
    kept_results.keep(write(tmp_path / "a", summary(task="rte", preset="paper")))
    kept_results.keep(write(tmp_path / "b", summary(task="rte", preset="paper", final="prediction_kd")))
    whole, compressed = kept_results.summaries()[::-1]
    assert setting_name(whole) == ["paper, uncompressed", "rte"] and kept_results.aim(compressed) == []
    assert form([whole], 1) == "2 × 64, T 4, float weights"
    assert len(run_table(kept_results.summaries()).splitlines()) == 4
    shorter = summary(task="rte", preset="paper", shape={"layers": 1, "hidden": 64, "heads": 4, "ffn": 128})
    kept_results.keep(write(tmp_path / "c", shorter))
    assert (kept_results.KEPT / "rte-paper-dir-1x64-T4-s0.json").is_file()
    assert len(run_table(kept_results.summaries()).splitlines()) == 5


def test_other_residuals_than_the_presets_have_rows_of_their_own(tmp_path) -> None:
    for name in ("membrane", "spikes"):
        student = {"spikes": "ternary", "residual": name, "coding": "accumulate"}
        kept_results.keep(write(tmp_path / name, summary(student=student)))
    assert {path.name for path in kept_results.KEPT.iterdir()} == {
        "sst2-minilm-dir-s0.json",  # the preset's
        "sst2-minilm-dir-residual-spikes-s0.json",
    }
    lines = score_table(kept_results.summaries(), every=False).splitlines()
    own = [line for line in lines if line.startswith("| minilm, residual=spikes")]
    assert len(own) == 3 and "2 × 64, ternary spikes, accumulate, T 4" in own[1] and "membrane" not in "".join(own)


def test_few_bit_weights_have_a_row_of_their_own() -> None:
    """The encoder in about a sixteenth of the bytes."""
    plain = summary()
    few = summary()
    whole = few["stages"]["prediction_kd"]["encoder_weights"]["bytes"]
    few["stages"]["finetune"]["encoder_weights"] |= {"kind": "ternary", "bytes": whole // 16}
    lines = compressed_table([plain, few]).splitlines()[2:]
    assert lines[0].startswith("| minilm | ") and lines[1].startswith("| minilm, ternary weights | ")
    assert lines[1].endswith("| 15.8 / 1.0 |") and "| 2 × 64, T 4, ternary weights |" in score_table([few])


def test_each_budget_has_a_row_of_its_own(tmp_path) -> None:
    for share in (0.02, 0.01):
        found = summary()
        found["stages"]["finetune"]["budget"] = {"share": share}
        kept_results.keep(write(tmp_path / str(share), found))
    names = [setting_name(found)[0] for found in kept_results.summaries()]
    assert names == [f"minilm, budget {share}" for share in (0.01, 0.02)]
    assert _kinds(kept_results.summaries()) == ["minilm, budget 0.01", "minilm, budget 0.02"]


def test_where_nothing_was_removed_there_is_no_compressed_score() -> None:
    whole = summary(final="prediction_kd")
    assert "| 90.0 | 88.0 | - |" in run_table([whole]) and compressed_table([whole]) == NOTHING
    assert "compressed" not in score_table([whole])


def test_a_teacher_and_its_student_are_of_the_most_seeds() -> None:
    """Two whole runs and one that one budget has compressed."""
    whole = [summary(final="prediction_kd", seed=seed) for seed in (0, 1)]
    whole[1]["teacher"]["metrics"]["accuracy"] = 0.8
    budget = summary()
    budget["stages"]["finetune"]["budget"] = {"share": 0.02}
    table = score_table([*whole, budget], every=False)
    rows = [line.split(" | ")[::2] for line in table.splitlines()[2:5]]
    assert rows == [
        ["| minilm, dense teacher", "85.0 ± 7.1"],
        ["| minilm, spiking student", "88.0 ± 0.0"],
        ["| minilm, budget 0.02", "86.0"],
    ]


def test_a_page_without_marks_is_an_error() -> None:
    assert between("a <!-- x: begin -->old<!-- x: end --> b", "x", "new").split("\n")[1] == "new"
    with pytest.raises(ValueError, match="marks"):
        between("a page", "x", "new")


def test_the_readme_shows_the_table_of_the_first_run() -> None:
    from test_table import make_summary

    shown = results.terminal(make_summary())
    assert shown.startswith("```console\n$ make glue TASK=mrpc\n…\n") and shown.endswith("\n```")
    assert "temporal: 93.0, 2.5 below the dense teacher" in shown
    assert "make glue" in between(results.README.read_text(encoding="utf-8"), "first run", shown)
