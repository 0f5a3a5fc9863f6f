"""A sweep's file, read and checked: every key is one of the configuration's, every value one that it takes.

The format is W&B's, of which this much is supported: `method` grid, random or bayes; `metric`; `parameters` with dotted
keys, each `value`, `values`, or `min` and `max` with a `distribution`; `early_terminate` of type hyperband; `run_cap`;
`command`. https://docs.wandb.ai/models/sweeps/define-sweep-configuration
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

from spikeprune.config import scalars
from spikeprune.config.derived import data_name
from spikeprune.config.keys import type_of
from spikeprune.config.load import load
from spikeprune.config.schema import Config
from spikeprune.config.tasks import quality_names
from spikeprune.errors import InputError, nearest
from spikeprune.integrations.sweeps import form
from spikeprune.integrations.sweeps.form import Parameter
from spikeprune.report.results import names

METHODS = ("grid", "random", "bayes")
TOP = ("name", "description", "project", "entity", "command", "method", "metric", "parameters")
TOP += ("early_terminate", "run_cap")
MANY = 300  # combinations of a grid that are checked one by one; of more, each value alone


@dataclass(frozen=True)
class Sweep:
    path: Path
    tree: dict[str, Any]  # the file with the command line's values, as W&B's server gets it
    method: str
    metric: str
    goal: str
    parameters: tuple[Parameter, ...]
    experiment: str
    fixed: tuple[str, ...]  # the command's own key=value, but for those that only an agent can fill in
    run_cap: int | None = None
    rungs: tuple[int, int] | None = None  # early termination: first rung and the factor to the next
    problems: list[str] = field(default_factory=list)

    @property
    def swept(self) -> list[str]:
        """Keys with more than one value."""
        return [p.key for p in self.parameters if len(p.values) != 1]

    @property
    def size(self) -> int | None:
        """Combinations of the grid; None for the other methods."""
        return len(self.grid()) if self.method == "grid" else None

    def grid(self) -> list[dict[str, Any]]:
        values = itertools.product(*(p.values for p in self.parameters))
        return [dict(zip((p.key for p in self.parameters), row, strict=True)) for row in values]

    def overrides(self, values: Mapping[str, Any]) -> list[str]:
        """The trial's `key=value` arguments."""
        return [*self.fixed, *(scalars.spelt(key, value) for key, value in values.items())]

    def config(self, values: Mapping[str, Any], *more: str) -> Config:
        return load(self.experiment, [*self.overrides(values), *more])


def read(path: str | Path, given: Iterable[str] = ()) -> Sweep:
    """The sweep of a file, with `key=value` of the command line in place of the file's values of these keys.

    Raises InputError with every problem found, before anything is made or started.
    """
    path = Path(path)
    tree = _tree(path)
    parameters = tree.get("parameters")
    if isinstance(parameters, dict):
        fixed = {key: {"value": _typed(key, value)} for key, value in map(scalars.read_override, given)}
        tree = {**tree, "parameters": {**parameters, **fixed}}
    sweep = _parse(path, tree)
    problems = sweep.problems or check(sweep)
    if problems:
        raise InputError("\n".join(f"{path}: {problem}" for problem in problems))
    return sweep


def _tree(path: Path) -> dict[str, Any]:
    """The file's, values of a parameter by the type of its key, all else (`min`, `distribution`) as YAML 1.2 has it."""
    tree = scalars.parse_file(path)
    made, parameters = scalars.plain(tree), tree.get("parameters")
    for key, how in parameters.items() if isinstance(parameters, dict) else ():
        if isinstance(how, dict) and "value" in how:
            made["parameters"][key]["value"] = _typed(key, how["value"])
        if isinstance(how, dict) and isinstance(how.get("values"), list):
            made["parameters"][key]["values"] = [_typed(key, value) for value in how["values"]]
    return made


def _typed(key: str, value: Any) -> Any:
    """Unreadable text stays text, which the configuration refuses."""
    kind = type_of(key)
    if kind is None or is_dataclass(kind):
        return scalars.plain(value)
    try:
        return scalars.read(value, kind)
    except scalars.Unreadable:
        return value


# --------------------------------------------------------------------------------------------------- the file's form


def _parse(path: Path, tree: dict[str, Any]) -> Sweep:
    """The sweep and, in `problems`, the errors of the file's form."""
    problems = [f"{key}: unknown; there are {nearest(key, TOP)}" for key in tree if key not in TOP]
    method, metric = tree.get("method"), tree.get("metric")
    if method not in METHODS:
        problems.append(f"method = {method}: choose from {nearest(str(method), METHODS)}")
    if not isinstance(metric, dict) or not isinstance(metric.get("name"), str):
        problems.append("metric: write {name: result/main, goal: maximize}")
        metric = {"name": ""}
    goal = metric.get("goal", "minimize")
    if goal not in ("maximize", "minimize"):
        problems.append(f"metric.goal = {goal}: must be maximize or minimize")
    cap = tree.get("run_cap")
    if cap is not None and (not isinstance(cap, int) or cap < 1):
        problems.append(f"run_cap = {cap}: must be a whole number of at least 1")
    experiment, fixed = form.command(tree.get("command"), problems)
    found = form.parameters(tree.get("parameters"), str(method), problems)
    rungs = form.rungs(tree.get("early_terminate"), problems)
    return Sweep(path, tree, str(method), metric["name"], goal, found, experiment, fixed, cap, rungs, problems)


# ----------------------------------------------------------------------------------------- against the configuration


def check(sweep: Sweep) -> list[str]:
    """Problems of the sweep's keys and values under the configuration; empty for a valid sweep."""
    first = {p.key: p.samples()[0] for p in sweep.parameters}
    if problems := _load(sweep, [first]):  # a wrong key would come back with every value
        return problems
    if sweep.method == "grid" and len(sweep.grid()) <= MANY:
        tried = sweep.grid()
    else:
        tried = [{**first, p.key: value} for p in sweep.parameters for value in p.samples()]
    return _load(sweep, tried) or _metric(sweep, first)


def _load(sweep: Sweep, tried: Sequence[Mapping[str, Any]]) -> list[str]:
    found: dict[str, None] = {}
    for values in tried:
        try:
            sweep.config(values, "run.dir=check")
        except InputError as error:
            lines = str(error).splitlines()
            lines = lines[1:] or lines  # of several problems the first line is their number
            found |= dict.fromkeys(line.strip().removesuffix(" [command line]") for line in lines)
    return list(found)


def _metric(sweep: Sweep, values: Mapping[str, Any]) -> list[str]:
    config = sweep.config(values, "run.dir=check")
    known = names(quality_names(config.task, config.data.metrics))
    if sweep.metric in known:
        return []
    return [f"metric.name = {sweep.metric}: is not logged; choose from {nearest(sweep.metric, known)}"]


def default_folder(sweep: Sweep) -> Path:
    """runs/sweeps/FILE-TASK-PRESET, of the first values where these are swept."""
    config = sweep.config({p.key: p.samples()[0] for p in sweep.parameters}, "run.dir=check")
    return Path("runs/sweeps") / "-".join(part for part in (sweep.path.stem, data_name(config), config.preset) if part)
