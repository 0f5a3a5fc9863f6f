"""The mask search as a stage of a run: refused, alone, with epochs, killed."""

from __future__ import annotations

import json
import signal
import warnings

import pytest
import torch
from children import attempt
from micro import GLUE, micro, only, write_sst2
from pruning import D, F, H, L

from spikeprune.config.load import load
from spikeprune.cost.shapes import Shape
from spikeprune.errors import InputError
from spikeprune.experiment import compaction, pipeline
from spikeprune.experiment.run_directory import RunDirectory

SHAPE = Shape(hidden=D, heads=H, ffn=F, layers=L, classes=3, vocab_size=23, positions=8, theta="channel")
FLOORS = {"heads": 1, "ffn": 4}


KWON = ["stages.spatial.criterion=kwon", "stages.spatial.heads=1", "stages.spatial.ffn=1"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            ["stages.spatial.operations=0.5"],
            "stages.spatial.operations = 0.5: is for stages.spatial.criterion=kwon",
        ),
        (
            [*KWON, "stages.spatial.heads=0.5"],
            "stages.spatial.heads = 0.5: criterion kwon removes heads",
        ),
        ([*KWON, "stages.spatial.scope=layer"], "stages.spatial.scope = layer: criterion kwon is global"),
        ([*KWON], "stages.spatial.criterion = kwon: needs stages.spatial.operations, a share such as 0.5"),
        ([*KWON, "stages.spatial.operations=0"], "must be above 0 and at most 1"),
    ],
)
def test_a_configuration_that_cannot_is_refused(given, words) -> None:
    with pytest.raises(InputError, match=words):
        load(GLUE, ["preset=tiny", *given])


def overrides(folder, *more: str) -> list[str]:
    stages = [*only("teacher", "internal_kd", "spatial"), "stages.internal_kd.epochs=1"]
    mine = [*KWON, "stages.spatial.operations=0.4", "stages.teacher.epochs=2"]
    glue = folder.parent / "glue"
    return [*micro(folder, glue if glue.is_dir() else write_sst2(glue)), *stages, *mine, *more]


def start(folder, *more: str):
    return load(GLUE, overrides(folder, *more))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunDirectory:
    folder = tmp_path_factory.mktemp("runs") / "sst2"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline.run(start(folder, "stages.spatial.epochs=0"))
    return RunDirectory(folder)


def test_a_stage_of_no_epochs_prunes_and_learns_nothing(run) -> None:
    record = run.record("spatial")
    assert record["steps"] == 0 and sum(record["heads"]) < 6 and sum(record["ffn"]) < 74
    assert min(record["heads"]) >= 1 and min(record["ffn"]) >= 4
    before, after = run.weights("internal_kd"), run.weights("spatial")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    masks = {"spiking_bert.heads", "spiking_bert.ffn"}
    assert masks <= changed
    assert all(name in masks or name.endswith(("out.weight", "down.weight")) for name in changed)
    logged = [r for r in run.read_metrics() if "compress/operations" in r]
    assert len(logged) == 1 and logged[0]["stage"] == "spatial" and logged[0]["compress/operations"] < 0.5
    assert logged[0]["compress/block"] <= logged[0]["compress/diagonal"]
    before, after = (logged[0][f"compress/error_{key}"] for key in ("before", "after"))
    assert before > 0 and (after < before) is any(name.endswith(".weight") for name in changed)
    summary = json.loads(run.summary.read_text())
    assert summary["final"] == "spatial" and summary["uncompressed"] == "internal_kd"
    assert record["cost"]["ac"] < run.record("internal_kd")["cost"]["ac"]
    assert compaction.compact_run(run.path)["check"]["max_difference"] < 1e-9


def test_with_epochs_it_trains_on_and_a_share_too_small_is_refused(run) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline.run(start(run.path.parent / "more", "stages.spatial.epochs=2"))
        more = RunDirectory(run.path.parent / "more").record("spatial")
        assert more["steps"] == 16 and sum(more["heads"]) < 6
        with pytest.raises(InputError, match="stages.spatial.operations = 0.02: the floors of 1 heads and 4 neur"):
            pipeline.run(start(run.path.parent / "small", "stages.spatial.epochs=0", "stages.spatial.operations=0.02"))


def test_killed_after_the_search_it_resumes_as_undisturbed(run) -> None:
    """The decision is made once: a second one, on folded weights, would be another."""
    folder, log = run.path.parent, run.path.parent / "log"
    resumed = [*overrides(folder / "resumed", "stages.spatial.epochs=2"), "run.checkpoint_every=3"]
    assert attempt(resumed, log, ("spatial", 5)) == -signal.SIGKILL, log.read_text()
    assert attempt(resumed, log) == 0, log.read_text()
    mine, theirs = (RunDirectory(folder / name).weights("spatial") for name in ("resumed", "more"))
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    assert sum("compress/operations" in record for record in RunDirectory(folder / "resumed").read_metrics()) == 1
