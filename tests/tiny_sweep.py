"""A sweep over the smallest pipeline, and commands in processes of their own; not a test."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml
from micro import GLUE, ROOT, micro

from spikeprune.sweeps import machine

THREADS = f"run.threads={max(1, machine.cores() // 2)}"  # of a trial where two run at a time
HEADS, FFN = (0.5, 0.8), (0.2, 0.4, 0.6)


def tiny(glue: Path | str = "glue", **changes) -> dict:
    """A grid of six over the smallest pipeline: teacher and spatial."""
    small = [o for o in micro(Path("x"), Path(glue)) if not o.startswith(("run.dir", "preset", "compress"))]
    small += [
        "run.stages=[teacher,spatial]",
        "compress.t_steps=null",
        "compress.spatial.min_ffn=4",
        "stages.spatial.epochs=2",
    ]
    own = "runs/sweeps/tiny/${oc.env:WANDB_RUN_ID}"
    head = ["${env}", "${interpreter}", "-m", "spikeprune", "train", str(GLUE)]
    tree = {
        "method": "grid",
        "metric": {"name": "result/main", "goal": "maximize"},
        "parameters": {
            "preset": {"value": "tiny"},
            "compress.heads": {"values": list(HEADS)},
            "compress.ffn": {"values": list(FFN)},
        },
        "command": [*head, *small, f"run.dir={own}", "run.wandb=true", "${args_no_hyphens}"],
    }
    return {**tree, **changes}


def write(path: Path, tree: dict) -> Path:
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def spikeprune(*args: str, **environment: str) -> subprocess.Popen:
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_SILENT": "true", **environment}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, "-m", "spikeprune", *args], env=variables, **pipes)


def finish(child: subprocess.Popen) -> str:
    printed, _ = child.communicate(timeout=300)
    assert child.returncode == 0, printed
    return printed
