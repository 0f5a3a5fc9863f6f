"""Imports point down a list of packages, without circles; some libraries stay in one package."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "spikeprune"

# From the top down: a package imports from those below it and from itself.
PACKAGES = (
    "__main__",
    "cli",
    "arguments",
    "integrations",
    "export",
    "experiment",
    "report",
    "training",
    "pruning",
    "data",
    "kernels",
    "runtime",
    "models",
    "snn",
    "cost",
    "config",
    "files",
    "distributed",
    "errors",
    "__init__",  # of the package itself: below it is only its version, its public names are imported when they are used
)
HEIGHT = {name: height for height, name in enumerate(reversed(PACKAGES))}
LAZY = ("cli", "__init__")  # their functions import: help is printed, and `import spikeprune` returns, without torch

ONLY_IN = {
    "json": ("files/",),
    "omegaconf": ("config/",),
    "optuna": ("integrations/sweeps/",),
    "wandb": ("integrations/wandb/",),
}
NEVER_IN = {
    "lightning": ("snn/", "models/", "cost/", "pruning/"),
    "torch": ("errors.py", "files/", "config/", "arguments/", "cli.py", "report/"),
}
# Packages that only these import: the others are handed what they compute with.
HANDED_ON = {"kernels": ("kernels", "experiment")}


def package_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def module_of(path: Path) -> str:
    return ".".join(("spikeprune", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


def imported(path: Path, node: ast.AST) -> Iterator[str]:
    """Dotted names that a statement imports, relative ones made absolute."""
    package = ("spikeprune", *path.relative_to(PACKAGE).parts[:-1])
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        above = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
        base = ".".join(part for part in (above, node.module) if part)
        # `from spikeprune import cost` imports a module, `from spikeprune.cost import count` a name
        yield from (f"{base}.{alias.name}" for alias in node.names)


def imports(path: Path, source: str) -> list[str]:
    """Of a whole file, inside functions too."""
    return [name for node in ast.walk(ast.parse(source)) for name in imported(path, node)]


def hidden(path: Path, source: str) -> list[str]:
    """Names of the package that a function imports, or that are imported for types only."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    tree = ast.parse(source)
    places = [node for node in ast.walk(tree) if isinstance(node, functions)]
    places += [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
    found = [name for place in places for node in ast.walk(place) for name in imported(path, node)]
    return sorted({name for name in found if name.startswith("spikeprune.")})


def faults(path: Path, source: str) -> list[str]:
    here, file, found = package_of(path), path.relative_to(PACKAGE).as_posix(), []
    for name in imports(path, source):
        library, _, rest = name.partition(".")
        there = rest.partition(".")[0]
        if library == "spikeprune" and here not in LAZY and HEIGHT.get(there, 0) > HEIGHT[here]:
            found.append(f"{here} imports {there}, which is not below it")
        if library == "spikeprune" and here not in HANDED_ON.get(there, (here,)):
            found.append(f"{there} is handed on by {HANDED_ON[there][-1]}")
        if library in ONLY_IN and not file.startswith(ONLY_IN[library]):
            found.append(f"{library} is for {' and '.join(ONLY_IN[library])} only")
        if file.startswith(NEVER_IN.get(library, "no file")):
            found.append(f"{library} is not for {here}")
    if here not in LAZY:
        found += [f"{here} hides an import of {name}" for name in hidden(path, source)]
    return found


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """The modules of one circle of imports, or none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def graph_of(paths: list[Path]) -> dict[str, set[str]]:
    """Module -> modules that it imports, wherever the import stands, those of LAZY left out."""
    modules = {module_of(path): path for path in paths if package_of(path) not in LAZY}
    graph = {}
    for module, path in modules.items():
        names = imports(path, path.read_text(encoding="utf-8"))
        found = {name if name in modules else name.rpartition(".")[0] for name in names}
        graph[module] = (found & set(modules)) - {module}
    return graph


FILES = sorted(PACKAGE.rglob("*.py"))
EXPERIMENTS = sorted(PACKAGE.parent.joinpath("experiments").rglob("*.py"))
FOLDERS = sorted({package_of(path) for path in FILES})


@pytest.mark.parametrize("package", FOLDERS)
def test_imports_point_down(package: str) -> None:
    assert package in PACKAGES, f"give {package} a place in PACKAGES"
    found = {}
    for path in (path for path in FILES if package_of(path) == package):
        if here := faults(path, path.read_text(encoding="utf-8")):
            found[str(path.relative_to(PACKAGE))] = here
    assert not found


def test_no_circle_of_imports() -> None:
    assert circle(graph_of(FILES)) == []


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
        ("cost/x.py", "import spikeprune.training.x", "cost imports training, which is not below it"),
        ("models/x.py", "from ..training import losses", "models imports training, which is not below it"),
        ("models/x.py", "def f():\n    from spikeprune.snn import x", "models hides an import of spikeprune.snn.x"),
        (
            "models/x.py",
            "if TYPE_CHECKING:\n    from spikeprune.models.y import Y",
            "models hides an import of spikeprune.models.y.Y",
        ),
        ("models/x.py", "from .outputs import Outputs", None),
        ("models/x.py", "from spikeprune.snn.neurons import NEURONS", None),
        ("cli.py", "def f():\n    from spikeprune.experiment import pipeline", None),
        ("experiment/x.py", "from spikeprune import __version__", None),
        ("experiment/x.py", "import wandb", "wandb is for integrations/wandb/ only"),
        ("integrations/sweeps/x.py", "import wandb", "wandb is for integrations/wandb/ only"),
        ("integrations/sweeps/x.py", "import optuna", None),
        ("snn/x.py", "from lightning.pytorch import Trainer", "lightning is not for snn"),
        ("config/x.py", "import torch.nn as nn", "torch is not for config"),
    ],
)
def test_a_fault_is_found(file: str, source: str, fault: str | None) -> None:
    assert faults(PACKAGE / file, source) == ([fault] if fault else [])


def test_a_circle_is_found() -> None:
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"a"}})) == {"a", "b", "c"}
    assert circle({"a": {"b", "c"}, "b": {"c"}}) == []


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
