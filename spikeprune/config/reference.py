"""The configuration explained: every key with its help, and where each value of a resolved one comes from."""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from spikeprune.config.derived import value_of
from spikeprune.config.keys import every_key, in_words, leaves, type_of
from spikeprune.config.load import MAY_DIFFER, load, resolve
from spikeprune.config.resources import experiment_file
from spikeprune.config.scalars import PATHS, of_path, spelt
from spikeprune.config.schema import Config, Stage
from spikeprune.config.tasks import CUSTOM
from spikeprune.errors import InputError
from spikeprune.files import jsonfile

OWN_DATA = ("data.source", "data.hub", "data.train_file", "data.text", "data.label")  # a preset of custom needs them
STAGE = "stages.STAGE"  # stands for each stage: the fields that all stages have


@dataclass(frozen=True)
class Entry:
    """One key of the reference."""

    key: str
    kind: str  # its type in words, or its choices
    default: str
    help: str


def entries() -> list[Entry]:
    """Every distinct key once, in the order of the schema; the fields that all stages share under `STAGE`."""
    shared, found = set(every_key(Stage)), {}
    for key in every_key():
        name = key.split(".", 2)[-1]
        shown = f"{STAGE}.{name}" if key.startswith("stages.") and name in shared else key
        found.setdefault(shown, _entry(key, shown))
    return list(found.values())


def help_lines() -> list[str]:
    """The reference as text for a terminal."""
    width = max(len(entry.key) for entry in entries())
    return [f"{e.key:<{width}}  {e.help} [{e.kind}; default {e.default}]" for e in entries()]


def markdown() -> str:
    """The page docs/configuration.md."""
    rows = [f"| `{e.key}` | {e.kind} | `{e.default}` | {e.help} |" for e in entries()]
    return PAGE + "\n".join(["| key | value | default | meaning |", "| --- | --- | --- | --- |", *rows]) + "\n"


def explained(path: str | Path, overrides: list[str]) -> list[str]:
    """`key: value` of a resolved configuration, each with the file or argument that set it. Raises InputError."""
    config, sources = resolve(path, overrides)
    lines = [(key, _shown(value_of(config, key)), sources.get(key, "default")) for key in every_key()]
    width = max(len(f"{key}: {value}") for key, value, _ in lines if len(value) < 40)
    return [f"{f'{key}: {value}':<{width}}  # {source}" for key, value, source in lines]


def words_of(config: Config) -> list[str]:
    """The `key=value` arguments with which the package's own experiment resolves to `config`, but for the keys that
    place a run or show it."""
    given, default = (dict(leaves(asdict(one))) for one in (config, Config()))
    needed = [key for key in OWN_DATA if config.task == CUSTOM and given[key] != default[key]]
    named = [f"task={config.task}", f"preset={config.preset or 'null'}", *(_word(key, given[key]) for key in needed)]
    try:
        base = load(experiment_file(), named)
    except InputError:  # a preset of the user's, or one that needs more than its name
        named[1] = "preset=null"
        base = Config(task=config.task)
    own = dict(leaves(asdict(base)))
    left_out = (*MAY_DIFFER, "task", "preset", "ablation", *needed)
    return named + [_word(key, value) for key, value in given.items() if key not in left_out and value != own[key]]


def _word(key: str, value: Any) -> str:
    return of_path(key, value) if key in PATHS and value else spelt(key, value)


PAGE = """# Configuration

Made by `make docs` from `spikeprune/config/schema.py`; `spikeprune config --help-keys` prints the same.

A configuration is put together from the defaults below, an experiment file (`experiments/glue.yaml`), the preset and
the ablation that it or the command line names, and `key=value` arguments; a later value wins. `spikeprune config
KEY=VALUE …` prints the result, each value with the file or argument that set it.

- Text keys take what stands behind `=` literally, except `null`, `${…}` and the leading `~` of a path. Whole numbers
  are plain decimal digits, truth values are `true` or `false`, lists are written `[a,b]`.
- Stages run in the order of this page. Each owns its parameters: `stages.spatial.heads=0.5`. A stage of 0 epochs is
  left out. `stages.STAGE` stands for each of teacher, general_kd, internal_kd, prediction_kd, spatial, temporal,
  quantize, budget and finetune.
- A stage trains at least `epochs` epochs and at least `steps` optimizer steps, so that one recipe serves data sets of
  all sizes.

"""


def _entry(key: str, shown: str) -> Entry:
    section, _, name = key.rpartition(".")
    field = next(field for field in fields(type_of(section) if section else Config) if field.name == name)
    choices, default = field.metadata["choices"], field.default
    words = ", ".join(choices) if choices else in_words(type_of(key))
    value = field.default_factory() if default is MISSING else default
    return Entry(shown, words, _shown(value), field.metadata["help"])


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else jsonfile.dumps(value, ensure_ascii=False)
