"""Whole runs of other codings and of generated data, and teachers that are too weak for a run."""

from __future__ import annotations

from dataclasses import asdict
from types import SimpleNamespace

import lightning
import pytest
import torch
from micro import GLUE, STAGES, micro, only

from spikeprune import cli
from spikeprune.config.load import load
from spikeprune.config.schema import Config
from spikeprune.config.tasks import get_task
from spikeprune.data.glue import RawData, Split
from spikeprune.errors import InputError
from spikeprune.experiment import evaluation, pipeline
from spikeprune.experiment.measurement import check_teacher
from spikeprune.experiment.run_directory import RunDirectory
from spikeprune.training.callbacks.cost_logger import CostLogger

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("epochs", [0, 1])
def test_a_teacher_no_better_than_chance_stops_the_run(epochs, tmp_path, capsys) -> None:
    """On generated data, which no network learns in one epoch at such a rate."""
    run = RunDirectory(tmp_path / "run")
    small = ["task=rte", "data.embedded=[16,20]", "stages.teacher.lr=1.0e-9"]
    assert cli.main(["train", str(GLUE), *micro(run.path), *small, f"stages.teacher.epochs={epochs}"]) == 2
    message = capsys.readouterr().err
    assert "error: the teacher's accuracy on rte is 0." in message
    assert "no better than a constant prediction" in message
    assert not run.finished("teacher") and not run.summary.exists()
    assert not any((run.path / "stages" / name).exists() for name in STAGES[1:])


@pytest.mark.parametrize("name, taught, plain", [("sst2", 612, 611), ("stsb", 1e-4, 0.0)])
def test_a_teacher_must_be_better_than_the_majority_not_level_with_it(name, taught, plain) -> None:
    """611 of 1043 in float32 is above 611 / 1043 in float64."""
    task = get_task(name)
    labels = [1] * 611 + [0] * 432
    context = SimpleNamespace(task=task, raw=RawData(task, {"validation": Split([], None, labels)}, *[""] * 4))

    def check(found: float) -> None:
        value = found if task.regression else torch.tensor(found / len(labels)).item()
        check_teacher(context, {"metrics": {"pearson" if task.regression else "accuracy": value}})

    check(taught)
    with pytest.raises(InputError, match=r"no better than a constant prediction \((611|0\.000)\)"):
        check(plain)


@pytest.mark.parametrize("seed", [0, 2**32 - 5000, 2**32 - 1])
def test_every_seed_that_is_allowed_gives_stages_seeds_that_are_taken(seed, tmp_path) -> None:
    (tmp_path / "empty.yaml").touch()
    assert load(tmp_path / "empty.yaml", [f"seed={seed}"]).seed == seed
    seeds = [pipeline.stage_seed(seed, stage) for stage in asdict(Config().stages)]
    assert len(set(seeds)) == len(seeds)
    for found in seeds:
        assert lightning.seed_everything(found, verbose=False) == found


def test_generated_data_are_never_called_glue(tmp_path, monkeypatch) -> None:
    """MNLI, with its two dev splits; nothing is learnt in one epoch, and that is allowed here."""
    monkeypatch.setattr("spikeprune.experiment.stage.check_teacher", lambda *_: None)
    small = ["task=mnli", "data.embedded=[24,12]", *only("teacher", "internal_kd", "spatial")]
    small += [
        "stages.temporal.t_steps=null",
        *(f"stages.{name}.epochs=1" for name in ("teacher", "internal_kd", "spatial")),
    ]
    summary = pipeline.run(load(GLUE, [*micro(tmp_path / "run"), *small]))
    assert summary["data"]["source"] == "embedded" and "NOT GLUE scores" in summary["data"]["banner"]
    assert list(summary["stages"]) == ["internal_kd", "spatial"] and summary["uncompressed"] == "internal_kd"
    for row in (summary["teacher"], *summary["stages"].values()):
        assert set(row["metrics"]) == {"accuracy", "validation_mismatched/accuracy"}
        assert row["main"] == row["metrics"]["accuracy"]
    splits = ("", "validation_mismatched/")
    for row in summary["stages"].values():
        assert set(row["fidelity"]) == {split + name for split in splits for name in ("agreement", "divergence")}
    # the same work in layer norms, softmax and gelu, but for the teacher's pooler
    costs = [row["cost"]["elementwise"] for row in (summary["teacher"], summary["stages"]["internal_kd"])]
    assert costs[0] - costs[1] == pytest.approx(24)


def test_operations_are_counted_on_the_first_dev_split_alone() -> None:
    """Where the teacher's are; MNLI's second split would be averaged in."""
    counter = CostLogger(teacher_shape=None, model="convention")
    counter.on_validation_batch_end(None, None, None, None, 0, dataloader_idx=1)
    assert counter.ops is None


@pytest.mark.parametrize(
    ("coding", "options"),
    [
        ("per_step", ["student.spikes=binary", "student.pooling=cls", "student.query=spiking"]),
        ("running_mean", ["student.theta=tensor", "student.leak=0.9", "student.layers=1"]),
        ("per_step", ["run.checkpoint_every=1000"]),  # more steps than any stage has: no checkpoint makes its folder
    ],
)
def test_the_other_codings_and_the_corpus_stage_run(coding, options, tmp_path, glue) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(["the film was a story of rain"] * 20))
    stages = [*only("teacher", "general_kd", "spatial"), "stages.general_kd.epochs=1", "stages.temporal.t_steps=null"]
    overrides = [*micro(tmp_path / "run", glue), *stages, f"data.corpus=[{corpus}]", f"student.coding={coding}"]
    summary = pipeline.run(load(GLUE, [*overrides, "student.forward=spiking", *options]))
    layers = 1 if "student.layers=1" in options else 2
    assert summary["stages"]["general_kd"]["steps"] == 3
    assert len(summary["stages"]["spatial"]["heads"]) == layers
    assert summary["stages"]["spatial"]["cost"]["latency_steps"] == 4  # all layers tick together
    again = evaluation.evaluate(tmp_path / "run")
    assert again["cost"] == summary["stages"]["spatial"]["cost"]
