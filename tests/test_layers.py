"""Imports point down, and some libraries stay in one file. Imports inside functions count as well."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "spikeprune"

# From the bottom up. A room may import from the rows below it and from itself, not from its neighbours in the row.
ROWS = (
    ("__init__",),
    ("errors", "signals", "terminal", "importing"),
    ("jsonfile",),
    ("tasks", "schema", "spiking", "size", "report", "ranks", "slurm", "tensors"),
    ("plan", "gains"),
    ("checks", "keys", "models", "operations", "activity", "distill", "graphs", "lock"),
    ("config", "cost", "metrics", "data", "processes", "asking"),
    ("compress", "rundir", "parts", "dynamic", "fetch"),
    ("modules", "launch"),
    ("callbacks", "tracking"),
    ("builders", "summary"),
    ("measure", "saved", "sharing"),
    ("stage", "evaluation"),
    ("pipeline", "compaction"),
    ("sweeps", "arguments"),
    ("cli",),
    ("__main__",),
)
LEVEL = {room: level for level, row in enumerate(ROWS) for room in row}

ONLY_IN = {"json": {"jsonfile"}, "omegaconf": {"config"}, "optuna": {"sweeps"}, "wandb": {"tracking"}}
NEVER_IN = {
    "lightning": {"spiking", "models", "size", "activity", "operations", "cost", "compress", "distill", "metrics"},
    "torch": {"errors", "tasks", "schema", "plan", "checks", "keys", "config", "arguments", "cli", "report"},
}


def room_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(path: Path, source: str) -> Iterator[str]:
    """Dotted names that a file imports, relative ones made absolute."""
    package = ("spikeprune", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            base = ".".join(part for part in (above, node.module) if part)
            # `from spikeprune import cost` imports a module, `from spikeprune.cost import count` a name
            yield from (f"{base}.{alias.name}" for alias in node.names)


def room_imported(name: str) -> str | None:
    head, _, rest = name.partition(".")
    if head != "spikeprune":
        return None
    room = rest.partition(".")[0]
    return room if room in LEVEL else "__init__"  # `from spikeprune import __version__`


def faults(path: Path, source: str) -> list[str]:
    here, found = room_of(path), []
    for name in imports(path, source):
        library, there = name.partition(".")[0], room_imported(name)
        if there is not None and there != here and LEVEL[there] >= LEVEL[here]:
            found.append(f"{here} imports {there}, which is not below it")
        if here not in ONLY_IN.get(library, {here}):
            found.append(f"{library} is for {' and '.join(ONLY_IN[library])} only")
        if here in NEVER_IN.get(library, ()):
            found.append(f"{library} is not for {here}")
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=[str(f.relative_to(PACKAGE)) for f in FILES])
def test_imports_point_down(path: Path) -> None:
    assert room_of(path) in LEVEL, f"give {room_of(path)} a row in ROWS"
    assert faults(path, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("file", "source", "fault"),
    [
        ("cost.py", "from spikeprune import pipeline", "cost imports pipeline, which is not below it"),
        ("cost.py", "def f():\n    import spikeprune.builders.x", "cost imports builders, which is not below it"),
        ("models/student.py", "from ..modules import student", "models imports modules, which is not below it"),
        ("models/student.py", "from .outputs import Outputs", None),
        ("models/student.py", "from spikeprune.spiking.site import Site", None),
        ("tasks.py", "from spikeprune.schema import Config", "tasks imports schema, which is not below it"),
        ("pipeline.py", "import wandb", "wandb is for tracking only"),
        ("spiking/site.py", "from lightning.pytorch import Trainer", "lightning is not for spiking"),
        ("config.py", "import torch.nn as nn", "torch is not for config"),
    ],
)
def test_the_test_sees(file: str, source: str, fault: str | None) -> None:
    assert faults(PACKAGE / file, source) == ([fault] if fault else [])
