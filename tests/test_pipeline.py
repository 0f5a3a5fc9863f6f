"""The whole pipeline on a task of sixty sentences: what a run leaves behind, what it refuses, and measuring again."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from statistics import fmean

import pytest
import torch
import transformers
from children import attempt
from micro import BATCHES, GLUE, STAGES, micro, write_sst2
from transformers import AutoTokenizer

import spikeprune
from spikeprune import cli
from spikeprune.config.load import load, read_resolved
from spikeprune.errors import InputError
from spikeprune.experiment import evaluation, pipeline
from spikeprune.experiment.checkpoints import load_student
from spikeprune.experiment.run_directory import RunDirectory
from spikeprune.experiment.summary import commit
from spikeprune.models import inference
from spikeprune.report.numbers import digits
from spikeprune.report.tables import summary_table

COST = {"ac", "mac", "elementwise", "energy_pj", "norm_ops", "params", "bytes", "work"}
LATENCY = {"latency_steps", "latency_stages", "latency_overlapped"}
EPOCHS = {"teacher": 3, "internal_kd": 2, "prediction_kd": 1, "spatial": 3, "temporal": 3, "finetune": 1}

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, glue) -> tuple[RunDirectory, str]:
    """One run through the command line, and what it printed."""
    folder = tmp_path_factory.mktemp("runs")
    code = attempt(micro(folder / "sst2", glue), folder / "log")
    assert code == 0, (folder / "log").read_text()
    return RunDirectory(folder / "sst2"), (folder / "log").read_text()


def test_a_run_leaves_its_files(finished) -> None:
    run, _ = finished
    files = {str(path.relative_to(run.path)) for path in run.path.rglob("*") if path.is_file()}
    wanted = {"config.yaml", "data.json", "metrics.jsonl", "metrics.csv", "run.log", "summary.json", "report.html"}
    wanted |= {
        f"stages/{name}/{file}" for name in STAGES for file in ("model.safetensors", "record.json", "predictions.json")
    }
    tokenizer = ("tokenizer.json", "tokenizer_config.json")
    wanted |= {f"stages/{name}/{file}" for name in STAGES for file in ("config.json", *tokenizer)}
    assert files == wanted


def test_what_a_run_leaves_is_loaded_by_the_package_and_by_transformers(finished, tmp_path) -> None:
    run, _ = finished
    folder = run.stage("finetune")
    model, student = spikeprune.load(run.path), load_student(run, "finetune").eval()
    batch = AutoTokenizer.from_pretrained(folder)(["the film was good", "bad"], padding=True, return_tensors="pt")
    expected = inference.infer(student, **batch).logits
    assert not model.training and torch.equal(model(**batch).logits, expected)
    assert torch.equal(spikeprune.load(folder)(**batch).logits, expected)
    assert model.config.id2label == {0: "negative", 1: "positive"} and model.config.t_steps == student.steps
    model.save_pretrained(tmp_path / "exported")
    assert torch.equal(spikeprune.load(tmp_path / "exported")(**batch).logits, expected)
    answers = transformers.pipeline("text-classification", str(folder))(["the film was good", "bad"])
    assert [a["label"] for a in answers] == [model.config.id2label[int(i)] for i in expected.argmax(1)]
    assert [a["score"] for a in answers] == pytest.approx(expected.softmax(-1).amax(1).tolist(), abs=1e-4)
    assert isinstance(spikeprune.load(run.stage("teacher")), transformers.BertForSequenceClassification)


def test_only_the_weights_of_the_record_are_loaded(finished, tmp_path) -> None:
    run, _ = finished
    copy = RunDirectory(shutil.copytree(run.path, tmp_path / "run"))
    shutil.copy(copy.stage("spatial") / "model.safetensors", copy.stage("finetune") / "model.safetensors")
    for path in (copy.path, copy.stage("finetune")):
        with pytest.raises(InputError, match="not the file that record.json describes"):
            spikeprune.load(path)
    (copy.stage("internal_kd") / "config.json").unlink()
    with pytest.raises(InputError, match="config.json is missing"):
        spikeprune.load(copy.stage("internal_kd"))
    for name in STAGES[1:]:
        shutil.rmtree(copy.stage(name))
    with pytest.raises(InputError, match="is missing, and the run was complete"):
        spikeprune.load(copy.path)
    copy.summary.unlink()
    with pytest.raises(InputError, match="no stage of the student is finished"):
        spikeprune.load(copy.path)
    with pytest.raises(InputError, match="holds no model"):
        spikeprune.load(tmp_path / "nowhere")


def test_the_terminal_ends_with_the_table(finished) -> None:
    run, printed = finished
    table = summary_table(json.loads(run.summary.read_text()))
    assert printed.endswith(f"\n{table}\n\nreport: {run.path / 'report.html'}\n")
    assert printed.startswith("data: sst2 from directory ")


def test_without_a_terminal_there_is_a_line_for_each_epoch(finished) -> None:
    run, printed = finished
    lines = [line.split("  ") for line in printed.splitlines() if re.match(r"  \w+ \d+/\d+  ", line)]
    places = [f"{name} {epoch + 1}/{EPOCHS[name]}" for name in STAGES for epoch in range(EPOCHS[name])]
    assert [line[1] for line in lines] == places and "\r" not in printed
    rows = {line[1]: line[2:] for line in lines}
    logged = [r for r in run.read_metrics() if r["stage"] == "spatial"]
    soft, loss = (fmean(r[key] for r in logged[:BATCHES] if key in r) for key in ("train/soft", "train/loss"))
    first = rows["spatial 1/3"]
    assert first[0].startswith(f"loss {loss:.4g} (soft {soft:.4g}, hidden ") and first[3].endswith(" left")
    last = next(r for r in reversed(logged) if "val/main" in r)
    found = rows["spatial 3/3"][1:3]
    assert found == [f"score {100 * last['val/main']:.1f}", f"{digits(last['cost/energy_pj'] / 1e3)} nJ"]
    assert rows["finetune 1/1"][3] == "0 s left" and len(rows["teacher 1/3"]) == 3  # a teacher's energy is one number


def test_the_log_is_what_was_printed(finished) -> None:
    run, printed = finished
    first, _, text = run.log.read_text().partition("\n")
    assert re.fullmatch(r"# \d{4}-\d\d-\d\d \d\d:\d\d:\d\d", first) and text == printed


def test_metrics_have_each_layer_the_learning_rate_and_the_time(finished) -> None:
    run, _ = finished
    records = [r for r in run.read_metrics() if r["stage"] == "spatial"]
    rates = [r["train/lr"] for r in records if "train/loss" in r]
    assert max(rates) == pytest.approx(run.record("spatial")["config"]["lr"]) and rates[-1] < max(rates) / 5
    times = [r["time"] for r in run.read_metrics()]
    assert times == sorted(times) and 0 < times[-1] - times[0] < 600
    record, last = run.record("spatial"), next(r for r in reversed(records) if "val/main" in r)
    for key in ("t_steps", "heads", "ffn"):
        assert [last[f"{key}/{i}"] for i in range(len(record[key]))] == record[key]
    assert {spiking_layer: last[f"rate/{spiking_layer}"] for spiking_layer in record["cost"]["rates"]} == pytest.approx(
        record["cost"]["rates"]
    )


def test_the_summary_names_each_stages_parent(finished, glue) -> None:
    run, _ = finished
    summary = json.loads(run.summary.read_text())
    data = summary["data"]
    assert data["source"] == "dir" and str(glue) in data["banner"] and len(data["fingerprint"]) == 16
    assert summary["task"] == "sst2" and summary["preset"] == "tiny" and summary["seed"] == 0
    assert summary["commit"] == commit() and summary["hardware"]
    assert summary["versions"]["torch"] == torch.__version__
    assert set(summary["versions"]) == {"spikeprune", "torch", "lightning", "transformers"}
    assert list(summary["stages"]) == list(STAGES[1:])
    assert (summary["uncompressed"], summary["final"]) == ("prediction_kd", "finetune")
    config = read_resolved(run.config)
    assert config.task == "sst2" and config.teacher.dropout == 0.1 and config.stages.spatial.ffn == 0.3


def test_the_summary_has_the_cost(finished) -> None:
    run, _ = finished
    summary = json.loads(run.summary.read_text())
    teacher, rows = summary["teacher"], summary["stages"]
    assert set(teacher["cost"]) == COST and teacher["cost"]["ac"] == 0 and teacher["cost"]["norm_ops"] == 1
    assert "fidelity" not in teacher
    assert 0.5 < teacher["metrics"]["accuracy"] == teacher["main"] <= 1
    for row in rows.values():
        assert COST | LATENCY | {"rate", "sparsity", "rates"} == set(row["cost"])
        assert 0 <= row["metrics"]["accuracy"] == row["main"] <= 1
        assert set(row["fidelity"]) == {"agreement", "divergence"}
        assert 0 < row["fidelity"]["agreement"] <= 1 and row["fidelity"]["divergence"] > 0
        assert row["energy_saving"] == pytest.approx(teacher["cost"]["energy_pj"] / row["cost"]["energy_pj"])
        assert row["cost"]["latency_steps"] == sum(row["t_steps"]) and 0 < row["cost"]["rate"] < 1
        assert row["cost"]["rate"] + row["cost"]["sparsity"] == pytest.approx(1)
    assert {name: row["steps"] for name, row in {"teacher": teacher, **rows}.items()} == {
        name: epochs * BATCHES for name, epochs in EPOCHS.items()
    }
    whole, small, last = rows["prediction_kd"], rows["spatial"], rows["finetune"]
    assert whole["heads"] == [3, 3] and whole["ffn"] == [37, 37] and whole["t_steps"] == [4, 4, 4]
    assert sum(small["heads"]) == 3 and min(small["heads"]) >= 1 and sum(small["ffn"]) == 22 and min(small["ffn"]) >= 4
    assert sum(last["t_steps"]) <= 6 and (last["heads"], last["ffn"]) == (small["heads"], small["ffn"])
    for kind in ("ac", "energy_pj", "params", "bytes", "latency_steps"):
        assert last["cost"][kind] < whole["cost"][kind], kind


def test_each_stage_names_its_parent(finished) -> None:
    run, _ = finished
    for name, parent in zip(STAGES, (None, "teacher", *STAGES[1:]), strict=False):
        record = run.record(name)
        if parent is None:
            assert record["parent"] is None
        else:
            assert record["parent"] == {"stage": parent, "weights": run.record(parent)["weights"]}
        assert record["config"]["epochs"] == EPOCHS[name]


def test_metrics_are_in_order_and_complete(finished) -> None:
    run, _ = finished
    records = run.read_metrics()
    assert [r["global_step"] for r in records] == sorted(r["global_step"] for r in records)
    assert list(dict.fromkeys(r["stage"] for r in records)) == list(STAGES)
    before = 0
    for name in STAGES:
        mine = [r for r in records if r["stage"] == name]
        training = [r["step"] for r in mine if "train/loss" in r]
        assert training == list(range(EPOCHS[name] * BATCHES))  # run.log_every=1
        assert all(r["global_step"] == before + r["step"] for r in mine)
        ends = [BATCHES * (epoch + 1) - 1 for epoch in range(EPOCHS[name])]
        assert [r["step"] for r in mine if "val/accuracy" in r] == ends
        assert [r["step"] for r in mine if "cost/energy_pj" in r] == (ends if name != "teacher" else [])
        before += EPOCHS[name] * BATCHES
    keys = set().union(*records)
    assert {"train/hidden", "train/scores", "train/soft", "val/main", "cost/ac", "cost/rate"} <= keys
    heads = [r["compress/heads"] for r in records if "compress/heads" in r]
    assert len(heads) == 3 and heads == sorted(heads, reverse=True) and heads[-1] == 0.5
    lines = (run.path / "metrics.csv").read_text().splitlines()
    assert len(lines) == len(records) + 1 and set(lines[0].split(",")) == keys


def test_the_last_line_of_each_stage_equals_the_summary(finished) -> None:
    """The dev split measured by the logger during training is the one measured again at the end."""
    check_last_lines(finished[0])


@pytest.mark.gpu
def test_the_same_with_the_fused_encoder(tmp_path, glue) -> None:
    """Several epochs a stage, by a fused optimizer, with heads of a size that the engine knows."""
    sizes = ["teacher.size=[32,2,2,64,300]", "stages.spatial.heads=0.5"]
    epochs = ["stages.finetune.epochs=4", "stages.prediction_kd.epochs=3", "run.accelerator=gpu"]
    run = RunDirectory(tmp_path / "run")
    assert cli.main(["train", str(GLUE), *micro(run.path, glue), *sizes, *epochs]) == 0
    check_last_lines(run)


def check_last_lines(run: RunDirectory) -> None:
    for name in STAGES[1:]:
        last = [r for r in run.read_metrics() if r["stage"] == name and "val/accuracy" in r][-1]
        record = run.record(name)
        assert last["val/accuracy"] == pytest.approx(record["metrics"]["accuracy"])
        fidelity = {key: last[f"val/{key}"] for key in ("agreement", "divergence")}
        assert fidelity == pytest.approx(record["fidelity"], rel=1e-3)
    for name in STAGES[1:]:
        last = [r for r in run.read_metrics() if r["stage"] == name and "cost/ac" in r][-1]
        assert last["cost/ac"] == pytest.approx(run.record(name)["cost"]["ac"], rel=1e-6)


@pytest.mark.parametrize("stage", ["teacher", "internal_kd", "spatial", "finetune"])
def test_evaluate_measures_the_same_again(finished, stage) -> None:
    run, _ = finished
    again, record = evaluation.evaluate(run.path, stage=stage), run.record(stage)
    for key in ("metrics", "main", "cost", "data", *(("t_steps", "heads", "ffn") if stage != "teacher" else ())):
        assert again[key] == record[key], key
    assert again.get("fidelity") == record.get("fidelity")
    assert again["stage"] == stage


def test_evaluate_on_the_command_line_and_on_other_data(finished, tmp_path, capsys) -> None:
    run, _ = finished
    assert cli.main(["evaluate", str(run.path), "--stage", "temporal", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    record = run.record("temporal")
    assert printed["cost"] == record["cost"] and printed["metrics"] == record["metrics"]
    assert printed["same_data"] is True and "run_data" not in printed
    other = write_sst2(tmp_path / "other", dev=10)
    assert cli.main(["evaluate", str(run.path), "--data", str(other), "--json"]) == 0
    out, err = capsys.readouterr()
    printed = json.loads(out)
    assert printed["stage"] == "finetune" and printed["data"]["fingerprint"] != record["data"]["fingerprint"]
    assert printed["same_data"] is False and printed["run_data"].items() >= record["data"].items()
    assert "warning: these are other data than the run's own" in err


def test_evaluate_refuses_what_is_not_there(finished, tmp_path) -> None:
    run, _ = finished
    for path, stage, message in (
        (tmp_path, None, "holds no run"),
        (run.path, "general_kd", "stage 'general_kd' is not finished; finished are: finetune, internal_kd"),
    ):
        with pytest.raises(InputError, match=message):
            evaluation.evaluate(path, stage=stage)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_second_start_does_nothing(finished, glue, capsys) -> None:
    run, _ = finished
    before = contents(run.path)
    summary = pipeline.run(load(GLUE, micro(run.path, glue)))
    assert "finished, nothing to run" in capsys.readouterr().out
    after = contents(run.path)
    assert before["summary.json"] == after["summary.json"] and run.read_summary() == json.loads(json.dumps(summary))
    assert after == before


def test_a_moved_run_is_still_the_run(finished, glue, tmp_path) -> None:
    run, _ = finished
    (tmp_path / "elsewhere").symlink_to(run.path)
    assert pipeline.run(load(GLUE, micro(tmp_path / "elsewhere", glue)))["final"] == "finetune"


def test_another_configuration_is_refused_with_the_keys_that_differ(finished, glue, capsys) -> None:
    run, _ = finished
    before = contents(run.path)
    assert cli.main(["train", str(GLUE), *micro(run.path, glue), "seed=3", "student.leak=0.9"]) == 2
    message = capsys.readouterr().err
    assert "seed: 0 → 3" in message and "student.leak: 1.0 → 0.9" in message
    assert message.count("→") == 2
    assert contents(run.path) == before


def test_other_data_under_the_same_name_are_refused(finished, tmp_path, glue) -> None:
    run, _ = finished
    dev = glue / "SST-2" / "dev.tsv"
    text = dev.read_text()
    try:
        dev.write_text(text + "rain was bad\t0\n")
        with pytest.raises(InputError, match="was started on other data"):
            pipeline.run(load(GLUE, micro(run.path, glue)))
    finally:
        dev.write_text(text)
