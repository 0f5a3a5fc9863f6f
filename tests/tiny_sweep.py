"""A sweep over the smallest pipeline, in processes of their own; not a test."""

from __future__ import annotations

from pathlib import Path

import children
import yaml
from micro import GLUE, ROOT, micro, only

HEADS, FFN = (0.5, 0.8), (0.2, 0.4)


def tiny(glue: Path | str = "glue", **changes) -> dict:
    """A grid of four over the smallest pipeline: teacher and spatial."""
    apart = ("run.dir", "preset", "stages.spatial.heads", "stages.spatial.ffn")
    small = [o for o in micro(Path("x"), Path(glue)) if not o.startswith(apart)]
    small += [*only("teacher", "spatial"), "stages.spatial.epochs=2"]
    own = "runs/sweeps/tiny/${oc.env:WANDB_RUN_ID}"
    head = ["${env}", "${interpreter}", "-m", "spikeprune", "train", str(GLUE)]
    tree = {
        "method": "grid",
        "metric": {"name": "result/main", "goal": "maximize"},
        "parameters": {
            "preset": {"value": "tiny"},
            "stages.spatial.heads": {"values": list(HEADS)},
            "stages.spatial.ffn": {"values": list(FFN)},
        },
        "command": [*head, *small, f"run.dir={own}", "run.wandb=auto", "${args_no_hyphens}"],
    }
    return {**tree, **changes}


def write(path: Path, tree: dict) -> Path:
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


ENVIRONMENT = {"PYTHONPATH": str(ROOT), "WANDB_SILENT": "true"}  # of the sweep's process, and so of its trials


def begin(log: Path, *words: str):
    """A process that runs a sweep."""
    return children.begin(["sweep", *words], log, ENVIRONMENT)


def sweep(log: Path, *words: str, code: int = 0, **environment: str) -> str:
    """A sweep to its end, in a process of its own; what it printed."""
    log.unlink(missing_ok=True)
    found = children.run_command(["sweep", *words], log, {**ENVIRONMENT, **environment})
    printed = log.read_text()
    assert found == code, printed
    return printed
