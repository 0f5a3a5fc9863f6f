"""`spikeprune fetch` with the real client libraries against a stand-in for the hub on loopback: what comes into the
cache is all that a compute node without network needs, and what is missing or damaged is named."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hub import Hub
from micro import GLUE, ROOT, micro, only, write_sst2
from test_bad_input import save_bert

from spikeprune import cli
from spikeprune.config.load import load
from spikeprune.errors import InputError
from spikeprune.experiment.fetch import local, needs, verify

RUN = (str(GLUE), "task=mrpc", "preset=tiny", "data.source=hub", "teacher.checkpoint=me/bert")


def write_mrpc(folder: Path) -> None:
    """An MRPC as the hub stores it: Parquet files, and a card that says which is which split."""
    import pyarrow
    from pyarrow import parquet

    (folder / "mrpc").mkdir(parents=True)
    card = "---\nconfigs:\n- config_name: mrpc\n  data_files:\n"
    for split, size in (("train", 60), ("validation", 24)):
        first, second = [f"the dog {i} barks" for i in range(size)], [f"a dog {i} runs" for i in range(size)]
        columns = {"sentence1": first, "sentence2": second, "label": [i % 2 for i in range(size)]}
        parquet.write_table(pyarrow.table(columns), folder / "mrpc" / f"{split}-00000-of-00001.parquet")
        card += f"  - split: {split}\n    path: mrpc/{split}-*\n"
    (folder / "README.md").write_text(card + "---\n# GLUE\n")


@pytest.fixture(scope="module")
def repositories(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    write_mrpc(folder / "datasets" / "nyu-mll" / "glue")
    save_bert(folder / "models" / "me" / "bert", ["the dog 0123456789 barks", "a dog runs"] * 4)
    return folder


class Machine:
    """One that has a cache of its own, and the network or not."""

    def __init__(self, cache: Path, url: str):
        self.environment = {**os.environ, "HF_HOME": str(cache), "HF_ENDPOINT": url, "PYTHONPATH": str(ROOT)}
        self.environment.pop("HF_HUB_OFFLINE", None)

    def __call__(self, command: str, *arguments: str, **environment: str) -> tuple[int, str, str]:
        program = [sys.executable, "-m", "spikeprune", command, *arguments]
        done = subprocess.run(program, capture_output=True, text=True, env={**self.environment, **environment})
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_from_an_empty_cache_to_a_node_without_network(repositories, tmp_path) -> None:
    with Hub(repositories) as hub:
        login = Machine(tmp_path / "cache", hub.url)
        code, out, error = login("fetch", *RUN)
        assert code == 0, error
        data, teacher, verified = out.splitlines()
        assert data == "data: mrpc from hub dataset nyu-mll/glue; 60 train, 24 validation"
        assert re.fullmatch(r"teacher: me/bert, [\d,]+ parameters, 4 files as the hub describes them", teacher)
        assert verified == "verified: a compute node without network finds all of it"
    node = Machine(tmp_path / "cache", hub.url)  # the stand-in is gone
    stages = [*only("teacher"), "stages.teacher.epochs=1", "stages.teacher.lr=1.0e-9"]
    size = [
        "stages.spatial.heads=1.0",
        "stages.spatial.ffn=1.0",
        "stages.temporal.t_steps=null",
        f"run.dir={tmp_path / 'run'}",
    ]
    code, out, error = node("train", *RUN, *stages, *size, "data.max_length=24", HF_HUB_OFFLINE="1")
    assert "data: mrpc from hub dataset nyu-mll/glue" in out and "[1/1] teacher" in out
    assert code == 2 and "no better than" in error  # after the only epoch that it was given
    assert json.loads((tmp_path / "run" / "data.json").read_text())["source"] == "hub"
    snapshot = next((tmp_path / "cache").rglob("model.safetensors")).parent
    assert verify(snapshot) == 4
    weights = (snapshot / "model.safetensors").resolve()
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(InputError, match=f"is damaged in the cache; remove {weights} and run spikeprune fetch again"):
        verify(snapshot)


@pytest.mark.slow
def test_a_launch_names_what_a_node_would_miss(repositories, tmp_path, monkeypatch, capsys) -> None:
    """Before anything is written, all of it at once, and without asking the hub, which would have it. `sbatch` says
    yes to everything here."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sbatch").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    run = [f"run.dir={tmp_path}/runs/${{task}}", "--array=mrpc rte", "--gpus=0"]
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with Hub(repositories) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        assert cli.main(["launch", RUN[0], *RUN[2:], *run]) == 2
        assert not hub.asked
    message = capsys.readouterr().err
    for words in (
        "(mrpc) was found neither",
        "(rte) was found neither",
        "'me/bert'",
        "spikeprune fetch, with the same",
    ):
        assert words in message, message
    assert not (tmp_path / "runs").exists()


def test_what_a_run_needs() -> None:
    def of(*overrides: str) -> list[tuple]:
        return list(needs([load(GLUE, overrides)]))

    embedded = ("preset=tiny", "task=rte", "data.source=embedded")
    assert of(*embedded) == [("data", "rte", "embedded", None, "nyu-mll/glue", None, None)]
    corpus = ("stages.general_kd.epochs=1", "data.corpus=[a.txt,b/c]", "teacher.checkpoint=x/y")
    assert of(*embedded, *corpus)[1:] == [("teacher", "x/y"), ("corpus", "a.txt"), ("corpus", "b/c")]
    assert of(*embedded, "data.corpus=[a.txt]")[1:] == []  # the stage does not run
    assert local(load(GLUE, embedded)) and not local(load(GLUE, [*embedded, "teacher.checkpoint=x/y"]))


def test_files_are_checked_without_a_hub(tmp_path, capsys) -> None:
    glue = write_sst2(tmp_path / "glue")
    assert cli.main(["fetch", str(GLUE), *micro(tmp_path / "run", glue)]) == 0
    assert f"data: sst2 from directory {glue}; 60 train, 24 validation" in capsys.readouterr().out
    (glue / "SST-2" / "dev.tsv").unlink()
    missing = [*micro(tmp_path / "run", glue), "stages.general_kd.epochs=1", "data.corpus=[no.txt]"]
    assert cli.main(["fetch", str(GLUE), *missing]) == 2
    message = capsys.readouterr().err
    assert "dev.tsv" in message and "no.txt is missing" in message and "Traceback" not in message
    assert cli.main(["fetch", str(GLUE), "preset=tiny", "--array=mrcp"]) == 2
    assert "unknown task mrcp" in capsys.readouterr().err
