"""Stage budget in whole runs: its target as reported, resume, behind the other stages, and stages taken over."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from children import attempt
from micro import BATCHES, GLUE, STAGES, logged, micro, only

from spikeprune import cli
from spikeprune.config.load import load
from spikeprune.errors import InputError
from spikeprune.experiment import pipeline, reuse
from spikeprune.experiment.run_directory import RunDirectory
from spikeprune.report.tables import summary_table

pytestmark = pytest.mark.filterwarnings("ignore")
SHARED = only("teacher", "internal_kd", "prediction_kd")
BUDGET = ("stages.budget.epochs=3", "stages.budget.value=0.06")
JOINT = (*only("teacher", "internal_kd", "prediction_kd", "quantize", "budget", "finetune"), *BUDGET)
WHOLE = (*BUDGET, *(f"stages.{name}.epochs=2" for name in ("spatial", "temporal", "quantize")))  # every stage
WHOLE += ("stages.spatial.heads=0.8", "stages.spatial.ffn=0.9", "stages.quantize.weights=ternary")
WHOLE += ("stages.finetune.epochs=1",)


@pytest.fixture(scope="module")
def shared(tmp_path_factory, glue) -> RunDirectory:
    """Teacher and distilled student, made once."""
    folder = tmp_path_factory.mktemp("shared") / "run"
    pipeline.run(load(GLUE, [*micro(folder, glue), *SHARED]))
    return RunDirectory(folder)


def command(folder: Path, glue: Path, shared: RunDirectory, *more: str) -> list[str]:
    return [*micro(folder, glue), f"run.start_from={shared.path}", *more]


def left(run: RunDirectory, stages) -> dict:
    """What a run leaves, but for the time it took."""
    records = {name: run.record(name) for name in stages}
    assert all(record.pop("seconds") > 0 for record in records.values())
    weights = {name: (run.stage(name) / "model.safetensors").read_bytes() for name in stages}
    return {"records": records, "weights": weights, "metrics": logged(run)}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, glue, shared) -> RunDirectory:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert attempt(command(folder / "run", glue, shared, *WHOLE), folder / "log") == 0, (folder / "log").read_text()
    return RunDirectory(folder / "run")


def test_the_target_is_reached_and_kept(undisturbed) -> None:
    summary = json.loads(undisturbed.summary.read_text())
    dense = summary["teacher"]["cost"]["energy_pj"]
    for name in ("budget", "finetune"):
        row = summary["stages"][name]
        share = row["cost"]["energy_pj"] / dense
        reached = row["budget"]["reached"]  # on training sentences
        assert reached <= 0.06 and (reached >= 0.06 * 0.98 or row["budget"]["why_not"])
        assert row["budget"]["reported"] == pytest.approx(share) and share == pytest.approx(
            reached, rel=0.2
        )  # on a few dev sentences
        assert min(row["heads"]) >= 1 and min(row["ffn"]) >= 4 and min(row["t_steps"]) >= 1
        assert f"budget of {name}: energy {share:.4g} of the dense teacher's, target 0.06" in summary_table(summary)
    before, after = summary["stages"]["quantize"], summary["stages"]["budget"]
    assert sum(before["heads"]) == 5 and sum(before["ffn"]) == 67 and sum(before["t_steps"]) <= 6
    assert sum(after["heads"]) <= 5 and sum(after["heads"]) + sum(after["ffn"]) < 5 + 67
    assert sum(after["t_steps"]) <= sum(before["t_steps"])
    assert after["encoder_weights"]["kind"] == "ternary" and after["encoder_weights"]["strength"] == 1
    logged = [record for record in undisturbed.read_metrics() if "compress/budget" in record]
    values = [record["compress/budget"] for record in logged if record["stage"] == "budget"]
    assert len(values) == 3 and values[0] > values[-1] == pytest.approx(after["budget"]["reached"])


@pytest.mark.parametrize(
    "kills", [[("budget", 5), ("budget", 2 * BATCHES + 2)], [("budget", BATCHES + 4), ("finetune", 4)]]
)
def test_killed_in_the_middle_equals_undisturbed(kills, undisturbed, glue, shared, tmp_path) -> None:
    run, log = RunDirectory(tmp_path / "run"), tmp_path / "log"
    again = [*command(run.path, glue, shared, *WHOLE), "run.checkpoint_every=3"]
    for kill in kills:
        assert attempt(again, log, kill) == -signal.SIGKILL, log.read_text()
    assert attempt(again, log) == 0, log.read_text()
    stages = (*STAGES[:-1], "quantize", "budget", "finetune")
    assert left(run, stages) == left(undisturbed, stages)


# -------------------------------------------------------------------------------------------- taken over, and refused


def refused(*overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        pipeline.run(load(GLUE, overrides))
    return str(caught.value)


def test_a_target_out_of_reach_names_the_lowest(glue, shared, tmp_path) -> None:
    own = command(tmp_path / "run", glue, shared, *JOINT)
    text = refused(*own, "stages.budget.value=0.0001", "stages.budget.candidates=[steps]")
    assert "stages.budget.value = 0.0001: with everything removed" in text and "[steps]" in text
    lowest = float(text.split("still has ")[1].split()[0])
    assert 0.0001 < lowest < 1
    assert not RunDirectory(tmp_path / "run").finished("budget")


def test_stages_are_taken_over_once_and_linked(glue, shared, tmp_path, capsys) -> None:
    mine = RunDirectory(tmp_path / "run")
    stages = only("teacher", "internal_kd", "prediction_kd", "finetune")
    own = command(mine.path, glue, shared, *stages, "stages.prediction_kd.lr=1.0e-4")
    pipeline.run(load(GLUE, own))
    said = capsys.readouterr().out
    assert (
        f"taken over from {shared.path}: teacher, internal_kd (then stages.prediction_kd.lr: 0.0005 → 0.0001)" in said
    )
    assert mine.record("teacher")["taken_from"] == str(shared.path) and "taken_from" not in mine.record("prediction_kd")
    for name in ("teacher", "internal_kd"):
        file = mine.stage(name) / "model.safetensors"
        assert file.samefile(shared.stage(name) / "model.safetensors")
    assert [r for r in mine.read_metrics() if r["stage"] == "teacher"] == [
        r for r in shared.read_metrics() if r["stage"] == "teacher"
    ]
    pipeline.run(load(GLUE, own))
    assert "taken over" not in capsys.readouterr().out


def test_on_another_file_system_files_are_copied(tmp_path, monkeypatch) -> None:
    def refuses(*_) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(reuse.os, "link", refuses)
    (tmp_path / "one").write_text("weights")
    reuse._link(tmp_path / "one", tmp_path / "two")
    assert (tmp_path / "two").read_text() == "weights"


def test_another_student_takes_over_the_teacher_alone(glue, shared, tmp_path, capsys) -> None:
    """Which is the one that a run from the beginning makes."""
    own = [*SHARED, "student.t_steps=5", "data.replace_words=0.5"]
    assert "taken_from" not in shared.record("teacher")
    config = load(GLUE, command(tmp_path / "run", glue, shared, *own))
    assert pipeline.run(config)["stages"]["prediction_kd"]["t_steps"] == [5, 5, 5]
    assert f"taken over from {shared.path}: teacher (then " in capsys.readouterr().out
    mine = RunDirectory(tmp_path / "run")
    assert [name for name in ("teacher", "internal_kd") if "taken_from" in mine.record(name)] == ["teacher"]
    pipeline.run(load(GLUE, [*micro(tmp_path / "alone", glue), *own]))
    alone = RunDirectory(tmp_path / "alone")
    for name in ("teacher", "internal_kd"):
        files = [run.stage(name) / "model.safetensors" for run in (mine, alone)]
        assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("seed=7", "was made with other settings, so none of its stages are this run's:\n  seed: 0 → 7"),
        ("stages.teacher.lr=2.0e-2", "none of its stages can be taken over: stages.teacher.lr: 0.01 → 0.02"),
        ("data.train_limit=50", "data: fingerprint"),
        ("run.start_from=nowhere", "nowhere: holds no run"),
    ],
)
def test_stages_of_another_run_are_refused(change, message, glue, shared, tmp_path) -> None:
    own = command(tmp_path / "run", glue, shared, *SHARED)
    assert message in refused(*own, change)
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------------------------ ablations


def test_the_ablation_makes_one_table_and_only_what_is_missing(glue, tmp_path, monkeypatch, capsys) -> None:
    import sys

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(GLUE.parent))
    import ablation

    values = [
        v for v in micro(tmp_path, glue) if not v.startswith(("run.dir", "stages.spatial.heads", "stages.spatial.ffn"))
    ]
    values = [v for v in values if not v.startswith("stages.temporal.t_steps")]
    values += ["stages.budget.epochs=2", "stages.budget.value=0.06"]
    values += ["stages.teacher.epochs=3", "stages.quantize.epochs=2"]
    values = [values[0], "--tag", "small", *values[1:]]  # as from make, options among the keys
    first = ablation.main(["--only", "none joint", *values])
    said = capsys.readouterr().out
    assert first == 0, said
    root = tmp_path / "runs" / "ablation" / "sst2-tiny-small"
    table = (root / "ablation.md").read_text()
    assert said.count("] teacher: 3 epochs") == 1 and said.count("taken over from") == 2
    for word in ("dense teacher", "spiking student", "| none |", "| joint |", "accuracy", "latency [steps]", "bytes"):
        assert word in table
    rows = (root / "ablation.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["ablation", "dense teacher", "spiking student", "none", "joint"]
    assert ablation.main(["--only", "none joint all", *values]) == 0
    said = capsys.readouterr().out
    assert "| all |" in said and said.count(": 3 epochs") == 2  # spatial and temporal of `all`; the rest was there
    sys.modules.pop("ablation")


def test_the_ablation_refuses_what_it_sets_itself(capsys, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(GLUE.parent))
    import ablation

    assert ablation.main(["seed=3"]) == 2 and "seed=3: the ablation sets this itself" in capsys.readouterr().err
    assert ablation.main(["--tag", "a/b"]) == 2 and "--tag = a/b: becomes part of" in capsys.readouterr().err
    assert ablation.main(["--seeds", "x"]) == 2 and "seeds = x" in capsys.readouterr().err
    assert ablation.main(["--only", "nonne", "task=sst2"]) == 2 and "did you mean none?" in capsys.readouterr().err


def test_a_bad_start_is_one_sentence_on_the_command_line(glue, tmp_path, capsys) -> None:
    code = cli.main(["train", str(GLUE), *micro(tmp_path / "run", glue), f"run.start_from={tmp_path}"])
    error = capsys.readouterr().err
    assert code == 2 and error.startswith("error: ") and len(error.splitlines()) == 1
