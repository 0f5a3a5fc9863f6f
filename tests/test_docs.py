"""What the documentation shows works: its Python runs, its commands are resolved without being run.

A comment `<!-- needs: gpu -->` before a block (or hub, onnx, slurm) says why its Python cannot run everywhere.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path

import pytest
from conftest import MISSING
from micro import GLUE, ROOT, micro, only, write_sst2

from spikeprune.arguments.commands import parse
from spikeprune.config.load import Config, load, read_resolved, to_yaml
from spikeprune.integrations.sweeps import spec
from spikeprune.runtime import onnx_graph

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"(?:<!-- needs: (?P<needs>\w+) -->\s*\n)?^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.M | re.S)
SHELLS = ("bash", "console", "sh", "shell")
OTHERS = (
    "cat",
    "cd",
    "cp",
    "echo",
    "export",
    "git",
    "head",
    "ls",
    "mkdir",
    "module",
    "pip",
    "pip_audit",
    "sbatch",
    "squeue",
    "uv",
    "wandb",
)
STARTERS = ("srun", "torchrun")  # of a program that stands behind their options
STUBBED = ("glue", "slurm", "fetch", "ablation", "sweep", "sweep-local")  # targets that start the command line


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    kind: str
    text: str
    needs: str | None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = [(match, text[: match.start("text")].count("\n") + 1) for match in BLOCK.finditer(text)]
    return [Block(page, line, m["kind"], m["text"], m["needs"]) for m, line in found]


def commands(block: Block) -> list[list[str]]:
    """The words of each command; of a console's block only what stands behind a prompt."""
    text = block.text.replace("\\\n", " ")
    lines = text.splitlines()
    if block.kind == "console":
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    found = []
    for line in lines:
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("|&;"):
                found += [words] if words else []
                words = []
            elif words or not re.match(r"\w+=", word):  # variables of the environment before the program
                words.append(word)
    return found


# ------------------------------------------------------------------------------------------------------------- Python


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder with what the pages' programs are about: a run, and its compacted student."""
    from spikeprune.experiment import compaction, pipeline

    folder = tmp_path_factory.mktemp("docs")
    run = folder / "runs" / "mrpc-tiny-s0"
    small = [*only("teacher", "spatial"), "stages.temporal.t_steps=null", "stages.spatial.epochs=1"]
    pipeline.run(load(GLUE, [*micro(run, write_sst2(folder / "glue")), *small]))
    compaction.compact_run(run)
    shutil.copytree(run / "compact", folder / "compact")
    return folder


@pytest.mark.parametrize("page", [page for page in PAGES if any(b.kind == "python" for b in blocks(page))], ids=str)
def test_python_runs(page: Path, finished: Path, monkeypatch) -> None:
    """The blocks of a page share their names, as a reader's session would."""
    monkeypatch.chdir(finished)
    names: dict = {"__name__": "page"}
    for block in (b for b in blocks(page) if b.kind == "python"):
        if block.needs and lacking(block.needs):
            pytest.skip(f"{block}: {lacking(block.needs)}")
        exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), names)


def lacking(needs: str) -> str:
    if needs == "hub":
        return "no test asks a network"
    if needs == "onnx":
        return ", ".join(onnx_graph.missing())
    return MISSING[needs]()


# -------------------------------------------------------------------------------------------------------------- shell


@cache
def targets() -> dict[str, str]:
    return dict(re.findall(r"^([a-z-]+):(.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))


def resolve(words: list[str], tmp_path: Path, make) -> None:
    """Raises where a command is none: an unknown program, target, variable, option or key, or a refused value."""
    program, *rest = words
    if program in STARTERS:
        at = next(i for i, word in enumerate(rest) if word in ("python", "spikeprune", "-m"))
        return resolve(rest[at:] if rest[at] != "-m" else ["python", *rest[at:]], tmp_path, make)
    if program == "make":
        return resolve_make(rest, tmp_path, make)
    if program == "spikeprune" or (program == "python" and rest[:2] == ["-m", "spikeprune"]):
        return resolve_own(rest if program == "spikeprune" else rest[2:], tmp_path)
    if program == "python" and rest[0] == "-m":
        assert rest[1] in OTHERS or importlib.util.find_spec(rest[1]), f"no module {rest[1]}"
    elif program == "python" and rest[0].endswith(".py"):
        assert (ROOT / rest[0]).is_file(), f"no script {rest[0]}"
        if rest[0] == "experiments/ablation.py":
            load(GLUE, [word for word in rest if re.match(r"[a-z_.]+=", word)])
    else:
        assert program in OTHERS, f"{program}: a program that no test knows"


def resolve_make(words: list[str], tmp_path: Path, make) -> None:
    target, *variables = words or ["help"]
    assert target in targets(), f"no target {target}"
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for name in (variable.partition("=")[0] for variable in variables):
        assert f"$({name})" in makefile, f"make {target}: the Makefile reads no {name}"
    if target in STUBBED:
        program, started = make(*words)
        assert program, started
        resolve([program, *started], tmp_path, make)


def resolve_own(words: list[str], tmp_path: Path) -> None:
    args = parse(words)
    if args.command == "sweep":
        spec.read(args.file, args.overrides)
    elif hasattr(args, "experiment"):
        tasks = (getattr(args, "array", None) or "").replace(",", " ").split()
        for task in tasks or [None]:
            load(args.experiment, [*args.overrides, *([f"task={task}"] if task else [])])
    elif getattr(args, "overrides", None):
        (tmp_path / "config.yaml").write_text(to_yaml(Config(preset="tiny")), encoding="utf-8")
        read_resolved(tmp_path / "config.yaml", args.overrides)


SHELL_BLOCKS = [block for page in PAGES for block in blocks(page) if block.kind in SHELLS]


@pytest.mark.parametrize("block", SHELL_BLOCKS, ids=str)
def test_commands_are_there(block: Block, make, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    for words in commands(block):
        resolve(words, tmp_path, make)


WRONG = [
    "make gleu TASK=mrpc",
    "make glue TAKS=mrpc",
    "make glue TASK=mrcp",
    "make glue TASK=mrpc ARGS='student.t_step=2'",
    "make sweep-local SWEEP=bugdet",
    "spikeprune trian experiments/glue.yaml",
    "spikeprune train experiments/glu.yaml",
    "spikeprune train experiments/glue.yaml sed=1",
    "spikeprune launch experiments/glue.yaml --array 'mrpc tre'",
    "spikeprune evaluate runs/x --stagge spatial",
    "spikeprune evaluate runs/x seed=1",
    "cd x && python -m spikeprune.nothing",
    "python experiments/nothing.py",
    "torchrun --nproc-per-node=2 -m spikeprune train experiments/glue.yaml sed=1",
    "pyhton -m spikeprune train",
]


@pytest.mark.parametrize("line", WRONG)
def test_a_command_that_is_not_there_is_found(line: str, make, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises((AssertionError, ValueError, SystemExit)):
        for words in commands(Block(ROOT / "README.md", 1, "bash", line + "\n", None)):
            resolve(words, tmp_path, make)


def test_commands_are_told_apart() -> None:
    text = "$ A=1 make glue TASK=mrpc \\\n    'ARGS=a b'  # a comment\nits output\n$ cd x && ls | head -1\n"
    found = commands(Block(ROOT / "README.md", 1, "console", text, None))
    assert found == [["make", "glue", "TASK=mrpc", "ARGS=a b"], ["cd", "x"], ["ls"], ["head", "-1"]]


# --------------------------------------------------------------------------------------------------------------- text

LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
CODE = re.compile(r"`([^`\n]+)`")
FILE = re.compile(r"(?:[\w-]+/)+[\w.-]*\.(?:py|yaml|json|sh|md|svg)|[\w-]+\.py")
MADE = ("runs/", "stages/<", "MRPC/", "my-", ".bench/")  # by a run or by the reader, not tracked


def prose(page: Path) -> str:
    """The page without its blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_files_are_there(page: Path) -> None:
    text = prose(page)
    missing = [link for link in LINK.findall(text) if not (page.parent / link).exists()]
    named = [code for code in CODE.findall(text) if FILE.fullmatch(code) and not code.startswith(MADE)]
    missing += [name for name in named if not any((top / name).exists() for top in (ROOT, ROOT / "spikeprune"))]
    assert not missing, f"{page.name}: {', '.join(missing)}"


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem != "changelog"], ids=lambda page: page.stem)
def test_keys_are_known(page: Path) -> None:
    """Every `section.key` or `section.key=value` in the text is a key of the configuration."""
    sections = "|".join(field.name for field in fields(Config) if is_dataclass(getattr(Config(), field.name)))
    found = re.findall(rf"`((?:{sections})\.[a-z_.]+)(?:=[^`]*)?`", prose(page))
    assert not [key for key in found if not is_key(key) and key not in ("run.log", "data.json")]  # files


def is_key(key: str) -> bool:
    at: object = Config()
    for part in key.split("."):
        if not (is_dataclass(at) and part in {field.name for field in fields(at)}):
            return False
        at = getattr(at, part)
    return True


def test_every_page_is_listed_and_the_readme_stays_short() -> None:
    listed = set(LINK.findall((ROOT / "docs" / "README.md").read_text(encoding="utf-8")))
    assert listed == {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 250
