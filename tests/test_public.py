"""The public names of the package: imported when they are used, and working from Python alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from micro import micro

import spikeprune
from spikeprune.config.load import load
from spikeprune.errors import InputError


@pytest.mark.filterwarnings("ignore")
def test_run_load_and_evaluate(tmp_path: Path, glue: Path) -> None:
    class Recorder:
        def __init__(self, inner):
            self.inner, self.calls = inner, []

        def __getattr__(self, name):
            self.calls.append(name)
            return getattr(self.inner, name)

    from spikeprune.experiment.tracking import Tracker

    follower = Recorder(Tracker())
    summary = spikeprune.run(micro(tmp_path / "run", glue), tracker=follower)
    assert summary["final"] == "finetune"
    assert list(dict.fromkeys(follower.calls)) == ["check", "opened", "log", "stage_done", "finished"]
    assert follower.calls.count("stage_done") == 6
    assert spikeprune.evaluate(tmp_path / "run")["main"] == summary["stages"]["finetune"]["main"]
    model = spikeprune.load(tmp_path / "run" / "stages" / "spatial")
    assert model.spiking_bert.heads.sum(1).tolist() == summary["stages"]["spatial"]["heads"] and not model.training
    with pytest.raises(InputError, match="holds no model"):
        spikeprune.load(tmp_path)


def test_run_takes_a_configuration_or_overrides(monkeypatch) -> None:
    seen = []
    monkeypatch.setattr("spikeprune.experiment.pipeline.run", lambda config, tracker: seen.append(config))
    spikeprune.run(["task=rte", "preset=tiny"])
    spikeprune.run(seen[0])
    assert seen[0] is seen[1] and (seen[0].task, seen[0].preset) == ("rte", "tiny")
    assert seen[0] == load(Path(__file__).parents[1] / "experiments/glue.yaml", ["task=rte", "preset=tiny"])
    with pytest.raises(TypeError, match="a list of key=value"):
        spikeprune.run("task=rte")


def test_import_is_light_and_names_are_lazy() -> None:
    code = """if True:
        import sys, time
        start = time.perf_counter()
        import spikeprune
        assert time.perf_counter() - start < 1  # seconds; about 0.01 on an idle machine
        assert not {"torch", "lightning", "transformers", "numpy", "yaml"} & set(sys.modules)
        assert set(spikeprune.__all__) <= set(dir(spikeprune))
        try:
            spikeprune.nothing
        except AttributeError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8")
    assert done.stderr == "" and done.stdout.startswith("module 'spikeprune' has no attribute 'nothing'; it has Budget")
