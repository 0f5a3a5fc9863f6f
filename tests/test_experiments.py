"""Every file under experiments/ explains itself and loads for every task; what the Makefile relies on is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from spikeprune.config.derived import active_stages, student_layers
from spikeprune.config.load import BUDGET, load, resolve
from spikeprune.config.tasks import TASKS

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "experiments").rglob("*.yaml"))
PRESETS = [path for path in FILES if path.parent.name == "presets"]
LAYERS = ("presets", "ablations", "sweeps")  # no experiments: test_targets.py has the ablations, test_sweeps.py sweeps
EXPERIMENTS = [path for path in FILES if path.parent.name not in LAYERS]
LIMIT = 120


def name(path: Path) -> str:
    return str(path.relative_to(ROOT / "experiments"))


@pytest.mark.parametrize("path", FILES, ids=name)
def test_the_header_has_purpose_and_command(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    header = "\n".join(re.match(r"(?:#[^\n]*\n)+", text).group().splitlines())
    for word in ("Purpose", "Command", "Hardware", "Expected"):
        assert re.search(rf"^# {word}: +\S", header, re.MULTILINE), f"no line '# {word}: …'"
    assert max(map(len, text.splitlines())) <= LIMIT


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name)
@pytest.mark.parametrize("preset", [None, *(path.stem for path in PRESETS)])
@pytest.mark.parametrize("task", TASKS)
def test_it_loads(path: Path, preset: str | None, task: str) -> None:
    config = load(path, [f"task={task}", *([f"preset={preset}"] if preset else [])])
    assert config.task == task
    assert config.run.dir.startswith(f"runs/{task}-")
    assert active_stages(config)[1:], "no stage has epochs"
    layers = student_layers(config)
    assert layers is None or layers >= 1


@pytest.mark.parametrize("preset", [path.stem for path in PRESETS])
@pytest.mark.parametrize("ablation", [None, *(path.stem for path in FILES if path.parent.name == "ablations")])
def test_few_files_decide(preset: str, ablation: str | None) -> None:
    """The experiment and its preset; what an ablation changes stands in its own folder."""
    _, sources = resolve(ROOT / "experiments" / "glue.yaml", [f"preset={preset}", f"ablation={ablation or 'null'}"])
    files = {Path(source) for source in sources.values() if source not in ("command line", BUDGET)}
    own = {path for path in files if path.parent.name == "ablations"}
    assert bool(own) == (ablation is not None) and len(own) <= 2  # one more for what differs from another in a line
    assert {path.name for path in files - own} == {"glue.yaml", f"{preset}.yaml"}


@pytest.mark.parametrize("path", FILES, ids=name)
def test_every_value_stands_where_it_is_set(path: Path) -> None:
    tokens = yaml.scan(path.read_text(encoding="utf-8"))
    assert not [token for token in tokens if isinstance(token, (yaml.AnchorToken, yaml.AliasToken))]


def test_the_presets_that_the_makefile_names() -> None:
    offered = re.search(r"PRESET=([\w|]+)\]", (ROOT / "Makefile").read_text(encoding="utf-8")).group(1)
    assert sorted(offered.split("|")) == sorted(path.stem for path in PRESETS)


def test_the_two_builds_of_torch_are_of_one_release() -> None:
    texts = [(ROOT / "requirements" / f"{build}.lock").read_text(encoding="utf-8") for build in ("cpu", "cuda")]
    cpu, cuda = (re.search(r"^torch==([\d.]+)", text, re.MULTILINE).group(1) for text in texts)
    pinned = re.search(r'"torch==([\d.]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8")).group(1)
    assert cpu == cuda == pinned


@pytest.mark.parametrize("lock", sorted((ROOT / "requirements").glob("*.lock")), ids=lambda path: path.name)
def test_every_locked_package_has_a_version_and_a_hash_and_no_address(lock: Path) -> None:
    text = re.sub(r"^#.*\n", "", lock.read_text(encoding="utf-8"), flags=re.MULTILINE)
    for entry in re.split(r"\n(?=\w)", text.strip()):
        assert re.match(r"[\w.-]+==\S+ [^\n]*\\\n    --hash=sha256:[0-9a-f]{64}", entry), entry[:80]
    assert "://" not in text and "--index" not in text
