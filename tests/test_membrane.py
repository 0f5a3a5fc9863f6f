"""`student.residual=membrane`: what goes past a block are currents. The network itself is compared in test_student.py,
its cost in test_cost.py; here is what it is for, and a whole run."""

from __future__ import annotations

import json

import pytest
import torch
from micro import GLUE, micro, write_sst2
from students import L, make, sentences

from spikeprune import cli
from spikeprune.config.load import load
from spikeprune.experiment import checkpoints, evaluation, pipeline
from spikeprune.experiment.run_directory import RunDirectory
from spikeprune.snn.coding import CODINGS


@pytest.mark.parametrize("coding", CODINGS)
@torch.no_grad()
def test_layers_that_are_silent_let_words_through(coding) -> None:
    """Neurons whose thresholds are out of reach say nothing, and a residual of spikes ends there. The last layer may
    fire: past layers that are silent it still tells sentences apart."""
    batch = sentences((5, 5, 5))
    different = {}
    for residual in ("spikes", "membrane"):
        student = make(0, (3, 3, 3), coding=coding, residual=residual)
        for name, spiking_layer in student.spiking_layers().items():
            if name != f"layers.{L - 1}.output":
                spiking_layer.log_theta.fill_(20.0)
        out = student(**batch, mode="spiking", count=True)
        assert sum(counts.sum() for name, counts in out.counts.items() if f"{L - 1}.output" not in name) == 0
        different[residual] = not torch.equal(out.logits[0], out.logits[1])
    assert different == {"spikes": False, "membrane": True}


@pytest.mark.filterwarnings("ignore")
def test_a_run(tmp_path, capsys) -> None:
    """Distilled, pruned in space and time, evaluated both ways, ended early, compacted."""
    overrides = [*micro(tmp_path / "run", write_sst2(tmp_path / "glue")), "student.residual=membrane"]
    pipeline.run(load(GLUE, overrides))
    run = RunDirectory(tmp_path / "run")
    record = run.record("finetune")
    assert checkpoints.load_student(run, "finetune").values["residual"] == "membrane"
    for stepwise in (False, True):
        found = evaluation.evaluate(run.path, stepwise=stepwise)
        assert found["metrics"] == record["metrics"] and found["cost"]["ac"] == pytest.approx(record["cost"]["ac"])
    capsys.readouterr()
    assert cli.main(["evaluate", str(run.path), "student.coding=running_mean", "--early-exit", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["dynamic"]["curve"]
    assert cli.main(["compact", str(run.path)]) == 0
    assert json.loads((run.compact / "config.json").read_text())["residual"] == "membrane"
    assert cli.main(["evaluate", str(run.path), "--compact", "--json"]) == 0
