"""Imports point down, and some libraries stay in one package. Imports inside functions and for types count as well."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "spikeprune"

# From the bottom up: a package imports from those before it and from itself.
PACKAGES = (
    "errors",
    "files",
    "config",
    "cost",
    "snn",
    "models",
    "kernels",
    "data",
    "pruning",
    "training",
    "report",
    "experiment",
    "integrations",
    "arguments",
    "cli",
    "__main__",
)
LEVEL = {name: level for level, name in enumerate(PACKAGES)}

ONLY_IN = {
    "json": {"files"},
    "omegaconf": {"config"},
    "optuna": {"integrations"},
    "wandb": {"integrations"},
}
NEVER_IN = {
    "lightning": {"snn", "models", "cost", "pruning"},
    "torch": {"errors", "files", "config", "arguments", "cli", "report"},
}
# Packages that only these import: the others are handed what they compute with.
HANDED_ON = {"kernels": {"kernels", "experiment"}}
# Imports that still point up, until their packages are mended; the list may only shrink.
UPWARDS = {
    ("data", "training"),
    ("experiment", "integrations"),
    ("config", "experiment"),
    ("training", "experiment"),
    ("report", "integrations"),
}


def package_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


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


def faults(path: Path, source: str) -> list[str]:
    here, found = package_of(path), []
    for name in imports(path, source):
        library, _, rest = name.partition(".")
        there = rest.partition(".")[0]
        if library == "spikeprune" and there in LEVEL and here in LEVEL and LEVEL[there] > LEVEL[here]:
            found.append(f"{here} imports {there}, which is not below it")
        if library == "spikeprune" and here in LEVEL and here not in HANDED_ON.get(there, {here}):
            found.append(f"{there} is handed on by {' and '.join(sorted(HANDED_ON[there] - {there}))}")
        if here not in ONLY_IN.get(library, {here}):
            found.append(f"{library} is for {' and '.join(ONLY_IN[library])} only")
        if here in NEVER_IN.get(library, ()):
            found.append(f"{library} is not for {here}")
    return found


def allowed(fault: str) -> bool:
    return any(fault == f"{here} imports {there}, which is not below it" for here, there in UPWARDS)


FILES = sorted(PACKAGE.rglob("*.py"))
EXPERIMENTS = sorted(PACKAGE.parent.joinpath("experiments").rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=[str(f.relative_to(PACKAGE)) for f in FILES])
def test_imports_point_down(path: Path) -> None:
    assert package_of(path) in ("__init__", *LEVEL), f"give {package_of(path)} a place in PACKAGES"
    assert [fault for fault in faults(path, path.read_text(encoding="utf-8")) if not allowed(fault)] == []


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import themselves, through whatever others."""

    def reachable(start: str) -> set[str]:
        found, ahead = set(), list(graph[start])
        while ahead:
            if (module := ahead.pop()) not in found:
                found.add(module)
                ahead.extend(graph[module])
        return found

    return sorted(module for module in graph if module in reachable(module))


def test_no_module_imports_itself_through_others() -> None:
    """Not inside functions and not for types either. Circles that are left are listed; the list may only shrink."""
    modules = {module_of(path): path for path in FILES}
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        names = imports(path, path.read_text(encoding="utf-8"))
        graph[module] = {
            next((name for name in (full, full.rpartition(".")[0]) if name in modules), module) for full in names
        } - {module}
    left = {f"spikeprune.models.{name}" for name in ("modeling", "sparsity", "weights")}
    assert set(circles(graph)) <= left


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == ["b", "c"]


def test_at_most_five_modules_lie_loose() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 5


@pytest.mark.parametrize(
    ("file", "source", "fault"),
    [
        (
            "cost/energy.py",
            "from spikeprune.experiment import pipeline",
            "cost imports experiment, which is not below it",
        ),
        ("cost/x.py", "def f():\n    import spikeprune.training.x", "cost imports training, which is not below it"),
        ("models/x.py", "from ..training import losses", "models imports training, which is not below it"),
        ("training/x.py", "from spikeprune.kernels import cuda_graphs", "kernels is handed on by experiment"),
        ("models/x.py", "from .outputs import Outputs", None),
        ("models/x.py", "from spikeprune.snn.neurons import NEURONS", None),
        ("experiment/x.py", "import wandb", "wandb is for integrations only"),
        ("snn/x.py", "from lightning.pytorch import Trainer", "lightning is not for snn"),
        ("config/x.py", "import torch.nn as nn", "torch is not for config"),
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
            "RunDirectory",
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
