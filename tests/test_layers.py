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
    ("errors", "signals", "terminal", "labels", "lightning_patches"),
    ("jsonfile",),
    ("streams", "tasks", "schema", "spiking", "size", "report", "ranks", "slurm", "tensors"),
    ("plan", "gains", "keys"),
    ("checks", "scalars", "models", "operations", "activity", "distill", "graphs", "lock"),
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

EXPERIMENTS = sorted(PACKAGE.parent.joinpath("experiments").rglob("*.py"))

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
            # `from spikeprune import cost` imports a module, `from spikeprune.cost.energy import count` a name
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
        (
            "cost.py",
            "def f():\n    import spikeprune.experiment.build.x",
            "cost imports builders, which is not below it",
        ),
        ("models/modeling.py", "from ..modules import student", "models imports modules, which is not below it"),
        ("models/modeling.py", "from .outputs import Outputs", None),
        ("models/modeling.py", "from spikeprune.snn.spiking_layer import Site", None),
        ("tasks.py", "from spikeprune.config.schema import Config", "tasks imports schema, which is not below it"),
        ("pipeline.py", "import wandb", "wandb is for tracking only"),
        ("snn/spiking_layer.py", "from lightning.pytorch import Trainer", "lightning is not for spiking"),
        ("config.py", "import torch.nn as nn", "torch is not for config"),
    ],
)
def test_the_test_sees(file: str, source: str, fault: str | None) -> None:
    assert faults(PACKAGE / file, source) == ([fault] if fault else [])


def without_encoding(source: str) -> list[int]:
    """Lines that open a text file, or a program's output as text, in whatever encoding the locale has."""
    found = []
    for node in (n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call)):
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        given = {keyword.arg: getattr(keyword.value, "value", None) for keyword in node.keywords}
        modes = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        binary = any("b" in mode and len(mode) <= 3 for mode in [*modes, str(given.get("mode", ""))])
        on = getattr(getattr(node.func, "value", None), "id", "")
        opens = name in ("read_text", "write_text", "open", "fdopen", "NamedTemporaryFile") and on not in (
            "os",
            "RunDir",
        )
        opens = opens and not (isinstance(node.func, ast.Name) and name == "read_text")  # a function of fetch.py
        if (opens and not binary or given.get("text") is True) and "encoding" not in given:
            found.append(node.lineno)
    return found


@pytest.mark.parametrize("path", [*FILES, *EXPERIMENTS], ids=lambda path: path.name)
def test_text_files_are_utf8_wherever_the_program_runs(path: Path) -> None:
    assert without_encoding(path.read_text(encoding="utf-8")) == []


def test_an_open_without_encoding_is_found() -> None:
    lines = ("p.read_text()", "open(p)", "p.open('a')", "run(c, text=True)", "p.write_text(t, 'x')")
    assert all(without_encoding(line) == [1] for line in lines)
    right = ("p.read_text(encoding='utf-8')", "open(p, 'rb')", "p.open('ab')", "p.read_bytes()", "os.open(p, 0)")
    assert not any(without_encoding(line) for line in right)
