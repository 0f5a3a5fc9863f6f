"""What the Makefile's targets start: the words that the command gets, and what the command makes of them.
test_launch.py has the targets `slurm` and `fetch` for real."""

from __future__ import annotations

from pathlib import Path

import pytest
from micro import ROOT

from spikeprune.arguments.commands import parse
from spikeprune.config.load import load
from spikeprune.integrations.sweeps import spec


def test_glue(make, tmp_path) -> None:
    program, words = make("glue", "TASK=rte", "SEED=3", "ARGS=student.t_steps=5 'run.dir=a b'")
    args = parse(words)
    config = load(args.experiment, args.overrides)
    assert (program, args.command, config.task, config.preset, config.seed) == ("spikeprune", "train", "rte", "tiny", 3)
    assert (config.data.source, config.student.t_steps, config.run.dir) == ("embedded", 5, "a b")
    (tmp_path / "my glue").mkdir()
    _, words = make("glue", "TASK=sst2", "PRESET=minilm", f"DATA={tmp_path / 'my glue'}", "TEACHER=me/bert")
    config = load(words[1], words[2:])
    assert (config.preset, config.data.source, config.data.dir) == ("minilm", "dir", f"{tmp_path}/my glue")
    assert config.teacher.checkpoint == "me/bert"
    _, words = make("glue", "TASK=sst2", "PRESET=minilm")
    assert load(words[1], words[2:]).data.source == "auto"
    _, words = make("glue", "TASK=custom", "ARGS=data.train_file=a.csv 'data.text=[a]' data.label=b")
    assert load(words[1], words[2:]).data.source == "auto"
    _, words = make("glue", "TASK=sst2", "PRESET=minilm", "BUDGET=0.01")
    config = load(words[1], words[2:])
    assert (config.stages.budget.value, config.run.dir) == (0.01, "runs/sst2-minilm-budget0.01-s0")


def test_values_keep_every_sign(make) -> None:
    name = """a b #1 %j 'q' "r" `t`, \\"""
    _, words = make(
        "glue", "TASK=rte", f"DATA=./{name}", f"TEACHER=./{name}", "ARGS='run.dir=exp #1' \"data.hub=x 'y'\""
    )
    config = load(words[1], words[2:])
    assert (config.data.dir, config.teacher.checkpoint) == (f"./{name}", f"./{name}")
    assert (config.run.dir, config.data.hub) == ("exp #1", "x 'y'")


@pytest.mark.parametrize("target", ["glue", "slurm", "fetch", "ablation", "sweep", "sweep-local"])
def test_arguments_are_not_cut_off(make, target) -> None:
    """To the shell an unquoted # begins a comment."""
    program, said = make(target, "TASK=rte", "SWEEP=budget", "ARGS=run.dir=exp #1")
    assert not program and "error: ARGS: put quotes around what holds a #" in said[0]


@pytest.mark.parametrize("target", ["glue", "slurm", "fetch", "ablation"])
def test_a_task_is_required(make, target) -> None:
    program, (said,) = make(target)
    assert not program and f"error: name a task, such as: make {target} TASK=mrpc" in said


def test_ablation(make) -> None:
    program, words = make("ablation", "TASK=mrpc", "SEEDS=0 2", "ABLATIONS=none joint", "ARGS=data.batch_size=8")
    assert (program, words[:3]) == ("python", ["experiments/ablation.py", "--seeds", "0 2"])
    assert words[3:] == [
        "task=mrpc",
        "preset=tiny",
        "data.source=embedded",
        "--only",
        "none joint",
        "data.batch_size=8",
    ]


@pytest.mark.parametrize("sweep", sorted(path.stem for path in Path(ROOT, "experiments", "sweeps").glob("*.yaml")))
def test_sweeps(make, sweep) -> None:
    program, words = make("sweep-local", f"SWEEP={sweep}", "TRIALS=6", "JOBS=2", "ARGS=task=sst2")
    args = parse(words)
    assert (program, args.command, args.local, args.trials, args.jobs) == ("spikeprune", "sweep", True, 6, 2)
    read = spec.read(args.file, args.overrides)
    assert read.path.stem == sweep and read.config({p.key: p.samples()[0] for p in read.parameters}).task == "sst2"
    args = parse(make("sweep", f"SWEEP={sweep}")[1])
    assert (args.local, args.trials, args.slurm) == (False, None, None)
    assert parse(make("sweep", f"SWEEP={sweep}", "SLURM=")[1]).slurm == ""
    assert parse(make("sweep", f"SWEEP={sweep}", "SLURM=--mem=8G --gpus=1")[1]).slurm == "--mem=8G --gpus=1"
    assert "error: name a file of experiments/sweeps" in make("sweep")[1][0]
