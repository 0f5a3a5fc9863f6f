"""How a file, its preset and overrides become one typed configuration (`merge.py`).

Every key is a field in `config/schema.py` with its default; an unknown key, a wrong type or an impossible combination
is an `InputError` that lists every problem found, before anything is loaded. What values may be is in `validation.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from spikeprune.config import scalars
from spikeprune.config.derived import own_name
from spikeprune.config.keys import leaves, type_of
from spikeprune.config.merge import Merge
from spikeprune.config.resources import folders
from spikeprune.config.schema import Config
from spikeprune.config.tasks import CUSTOM
from spikeprune.errors import InputError, nearest

# Keys that may differ between two attempts of one run: its directory (moved, or spelt otherwise), what is shown and
# logged, how often it can be resumed. Device count, accelerator and precision change the numbers, so they may not.
MAY_DIFFER = (
    "run.dir",
    "run.start_from",
    "run.log_every",
    "run.validate_every",
    "run.checkpoint_every",
    "run.tensorboard",
    "run.wandb",
)
# What a measurement of a finished stage may change: how it is measured, and what of the student needs no training.
MEASURING = (
    "run.accelerator",
    "run.kernels",
    "data.eval_batch_size",
    "student.coding",
    "student.forward",
    "student.dead_zone",
    "cost.model",
)
SAVED = ("task", "seed", "run", "data", "teacher", "student", "stages", "cost")  # by every run
COMMAND_LINE = "command line"
BUDGET = "one budget"  # the source of what `_budget` sets
BASE_DEPTH = 1
LENGTHS = ("epochs", "steps")  # of a stage
Layer = tuple[str, dict]  # where it comes from, and its tree of keys


def load(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """The configuration of an experiment file: defaults, its `base:`, the file, its preset, an ablation, then the
    overrides `key=value`; later wins.

    A preset is `presets/<name>.yaml`, an ablation `ablations/<name>.yaml`, in one of `resources.folders`. Raises
    InputError with every problem that is found.
    """
    return resolve(path, overrides)[0]


def resolve(path: str | Path, overrides: Iterable[str] = ()) -> tuple[Config, dict[str, str]]:
    """As `load`, with the file or "command line" that set each key which is not at its default."""
    merge, path = Merge(), Path(path)
    given = list(_overrides(overrides, merge))
    layers = _chain(path, merge)
    for kind in ("preset", "ablation"):
        name = _last(kind, layers, given)
        if name is not None:
            layers += _named(kind, path, str(name), merge)
    for source, tree in layers:
        merge.add(tree, source)
    for key, value in given:
        merge.add({key: value}, COMMAND_LINE)
    _budget(merge)
    merge.config.run.dir = _run_dir(merge, path)
    return merge.finish(), merge.sources


def _budget(merge: Merge) -> None:
    """A budget without epochs of its own is the whole compression: it takes the epochs and steps of the stages spatial
    and temporal, which are left out (one that the command line sets runs, and keeps its own), and the stage finetune is
    half as long, since units are fixed at its own middle. Its multiplier limits firing in place of the loss
    `additions`, unless it is a budget of latency, which firing does not change. What the command line sets stays."""
    if merge.value("stages.budget.value") is None:
        return
    if "stages.budget.epochs" not in merge.sources:
        replaced = [s for s in ("spatial", "temporal") if merge.sources.get(f"stages.{s}.epochs") != COMMAND_LINE]
        length = {n: [merge.value(f"stages.{stage}.{n}") or 0 for stage in replaced] for n in LENGTHS}
        if not any(length["epochs"]):
            merge.problem(
                "stages.budget.value: the stages spatial and temporal, whose epochs a budget takes, leave it none; "
                "give stages.budget.epochs"
            )
            return
        _rule({f"stages.budget.{n}": str(sum(length[n])) for n in LENGTHS}, merge)
        _rule({"stages.spatial.epochs": "0", "stages.temporal.epochs": "0"}, merge)
        if merge.value("stages.finetune.epochs"):
            _rule({f"stages.finetune.{n}": str(-(-sum(length[n]) // 2)) for n in LENGTHS}, merge)
    if merge.value("stages.budget.epochs") and merge.value("stages.budget.target") != "latency":
        for losses in ("stages.budget.losses", "stages.finetune.losses"):
            limited = {f"{losses}.additions": "0", f"{losses}.additions_limit": None}
            if COMMAND_LINE not in map(merge.sources.get, limited):
                _rule(limited, merge)


def _rule(ruled: dict[str, str | None], merge: Merge) -> None:
    for key, value in ruled.items():
        if merge.sources.get(key) != COMMAND_LINE:
            merge.add({key: value}, BUDGET)


def _run_dir(merge: Merge, path: Path) -> str:
    """`run.dir`, whose default names the ablation, or the budget that takes its place, of own data these, and without a
    preset the experiment's file."""
    folder, ablation = merge.raw("run.dir"), merge.value("ablation")
    if "run.dir" not in merge.sources:
        if ablation is None and merge.sources.get("stages.budget.epochs") == BUDGET:
            folder = folder.replace("-s$", f"-budget{merge.value('stages.budget.value'):g}-s$")
        folder = folder.replace("-s$", "-${ablation}-s$") if ablation is not None else folder
        if merge.value("task") == CUSTOM:
            folder = folder.replace("${task}", own_name(merge.value("data.train_file"), merge.value("data.hub") or ""))
    return folder if merge.value("preset") is not None else folder.replace("${preset}", path.stem)


def read_resolved(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """The configuration that a run saved with `to_yaml`: its preset is already in it. `overrides`: of keys that a
    measurement may change."""
    merge = Merge(resolved=True)
    tree = _read(Path(path), merge)
    if lost := [key for key in SAVED if key not in tree]:
        whose = "it is not the whole configuration that a run has saved; restore it, or use another run.dir"
        raise InputError("\n".join([*merge.problems, f"{path}: has no key {lost[0]!r}: {whose}"]))
    merge.add(tree, str(path))
    for key, value in _overrides(overrides, merge):
        if key in MEASURING or type_of(key) is None:
            merge.add({key: value}, COMMAND_LINE)
        else:
            merge.problem(f"{key}: is fixed by the run; here may change {', '.join(MEASURING)}", COMMAND_LINE)
    return merge.finish()


def to_yaml(config: Config) -> str:
    """Not by OmegaConf, which would take a `${` in a resolved value for another interpolation."""
    return yaml.dump(asdict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """Text with a line break of any kind, U+0085 among them, is quoted with escapes; YAML would fold it to a space."""

    def text(self, value: str) -> yaml.ScalarNode:
        breaks = len(value.splitlines()) > 1 or value != value.rstrip("\n\r\x85\u2028\u2029\x0b\x0c\x1c\x1d\x1e")
        return self.represent_scalar("tag:yaml.org,2002:str", value, style='"' if breaks else None)


_Dumper.add_representer(str, _Dumper.text)


def differences(old: Config, new: Config, but: Iterable[str] = MAY_DIFFER) -> dict[str, str]:
    """`old → new` for each key whose value is not the same, but for these keys; lists are compared whole."""
    before, after = (dict(leaves(asdict(config))) for config in (old, new))
    return {key: f"{before[key]} → {after[key]}" for key in after if key not in but and before[key] != after[key]}


def _overrides(overrides: Iterable[str], merge: Merge) -> Iterator[tuple[str, Any]]:
    for item in overrides:
        if item.startswith("_wandb"):  # W&B adds these when it resumes a preempted run of a sweep
            continue
        try:
            yield scalars.read_override(item)
        except InputError as error:
            merge.problem(str(error), COMMAND_LINE)


def _read(path: Path, merge: Merge) -> dict:
    """The tree of one file; {} with a problem noted when there is none to be had."""
    try:
        return scalars.parse_file(path)
    except InputError as error:
        merge.problem(str(error))
        return {}


def _chain(path: Path, merge: Merge, depth: int = 0) -> list[Layer]:
    tree = _read(path, merge)
    base = tree.pop("base", None)
    if base is None:
        return [(str(path), tree)]
    if depth == BASE_DEPTH:
        merge.problem(f"base = {base}: the chain of base files is at most {BASE_DEPTH} deep", str(path))
        return [(str(path), tree)]
    return [*_chain(path.parent / str(base), merge, depth + 1), (str(path), tree)]


def _named(kind: str, path: Path, name: str, merge: Merge) -> list[Layer]:
    """The layers of a preset or an ablation."""
    found = folders(f"{kind}s", path)
    files = {p.stem: p for folder in reversed(found) for p in sorted(folder.glob("*.yaml"))}
    if name not in files:
        known = nearest(name, files) if files else f"none: {', '.join(map(str, found))} hold no {kind}s"
        merge.problem(f"{kind} = {name}: unknown; choose from {known}")
        return []
    layers = _chain(files[name], merge)
    for source, tree in layers:
        if tree.pop(kind, name) != name:
            merge.problem(
                f"{kind}: {'an' if kind == 'ablation' else 'a'} {kind} cannot name another one; use base", source
            )
    return layers


def _last(key: str, layers: list[Layer], given: list[tuple[str, Any]]) -> Any:
    """The value of a top-level key that decides which files and blocks are read."""
    values = [tree[key] for _, tree in layers if key in tree] + [value for name, value in given if name == key]
    return values[-1] if values else None
