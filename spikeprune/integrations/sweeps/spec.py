"""A sweep's file, read and checked: every key is one of the configuration's, every value one that it takes.

The format is W&B's, of which this much is supported: `method` grid, random or bayes; `metric`; `parameters` with dotted
keys, each `value`, `values`, or `min` and `max` with a `distribution`; `early_terminate` of type hyperband; `run_cap`;
`command`. https://docs.wandb.ai/models/sweeps/define-sweep-configuration
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from spikeprune.config import scalars
from spikeprune.config.derived import data_name
from spikeprune.config.keys import type_of
from spikeprune.config.load import Config, load
from spikeprune.config.tasks import quality_names
from spikeprune.errors import InputError, nearest
from spikeprune.report.results import names

METHODS = ("grid", "random", "bayes")
DISTRIBUTIONS = ("uniform", "log_uniform_values", "int_uniform", "q_uniform")
TOP = ("name", "description", "project", "entity", "command", "method", "metric", "parameters")
TOP += ("early_terminate", "run_cap")
ARGS = "${args_no_hyphens}"  # macro of W&B's agent: each parameter as key=value
HEAD = ["${env}", "${interpreter}", "-m", "spikeprune", "train"]
OF_AGENT = "${oc.env:WANDB_"  # variables that only an agent sets for its trials
OWN_DIR = "${oc.env:WANDB_RUN_ID}"  # the agent's name for a trial, which OmegaConf reads from the environment
MANY = 300  # combinations of a grid that are checked one by one; of more, each value alone


@dataclass(frozen=True)
class Parameter:
    """One swept key: a list of values, or a range."""

    key: str
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    distribution: str = ""
    q: float = 1.0

    def samples(self) -> list[Any]:
        """Values that stand for all: every one of a list, a range's ends and middle."""
        if self.values:
            return list(self.values)
        middle = (self.low + self.high) / 2
        whole = self.distribution == "int_uniform"
        return [self.low, self.high, int(middle) if whole else middle]


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
        tree = {**tree, "parameters": {**parameters, **_fixed(given)}}
    sweep = _parse(path, tree)
    problems = sweep.problems or check(sweep)
    if problems:
        raise InputError("\n".join(f"{path}: {problem}" for problem in problems))
    return sweep


def _tree(path: Path) -> dict[str, Any]:
    tree = scalars.parse_file(path)
    found = tree.get("parameters")
    typed = isinstance(found, dict)
    parameters = {key: _of_parameter(key, how) for key, how in found.items()} if typed else scalars.plain(found)
    return {key: parameters if key == "parameters" else scalars.plain(value) for key, value in tree.items()}


def _of_parameter(key: str, how: Any) -> Any:
    """Its values by the type of its key, all else (`min`, `distribution`) as YAML 1.2 has it."""
    if not isinstance(how, dict):
        return scalars.plain(how)
    found = scalars.plain(how)
    if "value" in how:
        found["value"] = _typed(key, how["value"])
    if isinstance(how.get("values"), list):
        found["values"] = [_typed(key, value) for value in how["values"]]
    return found


def _typed(key: str, value: Any) -> Any:
    """Unreadable text stays text, which the configuration refuses."""
    kind = type_of(key)
    if kind is None or is_dataclass(kind):
        return scalars.plain(value)
    try:
        return scalars.read(value, kind)
    except scalars.Unreadable:
        return value


def _fixed(given: Iterable[str]) -> dict[str, dict[str, Any]]:
    found = {}
    for item in given:
        key, equals, text = item.partition("=")
        if not equals or not key or key.startswith("-"):
            raise InputError(f"{item}: write key=value, such as task=rte")
        try:
            found[key] = {"value": _typed(key, scalars.of_override(key, text))}
        except yaml.YAMLError:
            raise InputError(f"{item}: the value is no YAML; is a bracket or a quote missing?") from None
    return found


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
    experiment, fixed = _command(tree.get("command"), problems)
    found = _parameters(tree.get("parameters"), str(method), problems)
    rungs = _rungs(tree.get("early_terminate"), problems)
    return Sweep(path, tree, str(method), metric["name"], goal, found, experiment, fixed, cap, rungs, problems)


def _command(command: Any, problems: list[str]) -> tuple[str, tuple[str, ...]]:
    wanted = f"write [{', '.join(HEAD)}, EXPERIMENT, key=value …, {ARGS}]"
    if not isinstance(command, list) or command[: len(HEAD)] != HEAD or len(command) < len(HEAD) + 2:
        problems.append(f"command: {wanted}")
        return "", ()
    experiment, *rest = map(str, command[len(HEAD) :])
    wrong = [word for word in rest if word != ARGS and ("=" not in word or word.startswith("-"))]
    if wrong or rest.count(ARGS) != 1:
        problems.append(f"command: {', '.join(wrong) or ARGS}: {wanted}")
    fixed = tuple(word for word in rest if word != ARGS)
    if not any(word.startswith("run.dir=") and OWN_DIR in word for word in fixed):
        problems.append(f"command: each trial needs its own directory: add run.dir=runs/sweeps/NAME/{OWN_DIR}")
    return experiment, tuple(word for word in fixed if OF_AGENT not in word)


def _parameters(tree: Any, method: str, problems: list[str]) -> tuple[Parameter, ...]:
    if not isinstance(tree, dict) or not tree:
        problems.append(
            "parameters: must hold a section for each key, such as stages.spatial.heads: {values: [0.5, 1]}"
        )
        return ()
    found = []
    for key, how in tree.items():
        try:
            found.append(_parameter(str(key), how, method))
        except InputError as error:
            problems.append(f"parameters.{error}")
    return tuple(found)


def _parameter(key: str, how: Any, method: str) -> Parameter:
    if not isinstance(how, dict):
        raise InputError(f"{key} = {how}: write {{value: …}}, {{values: […]}} or {{min: …, max: …}}")
    if "parameters" in how:
        raise InputError(f"{key}: is nested; write dotted keys, such as {key}.{next(iter(how['parameters']), 'heads')}")
    known = ("value", "values", "min", "max", "distribution", "q")
    if unknown := [word for word in how if word not in known]:
        raise InputError(f"{key}.{unknown[0]}: not supported; there are {nearest(unknown[0], known)}")
    if "value" in how or "values" in how:
        values = how["values"] if "values" in how else [how["value"]]
        if not isinstance(values, list) or not values:
            raise InputError(f"{key}.values = {values}: must be a list of at least one value")
        if key == "task" and len(values) > 1:
            raise InputError("task: scores of different tasks have no common front; give each task a sweep of its own")
        if None in values:
            raise InputError(f"{key}: null cannot be passed by W&B's agent; leave the key out")
        return Parameter(key, tuple(values))
    return _range(key, how, method)


def _range(key: str, how: Mapping[str, Any], method: str) -> Parameter:
    low, high, q = how.get("min"), how.get("max"), how.get("q", 1.0)
    if any(isinstance(v, bool) or not isinstance(v, (int, float)) for v in (low, high, q)) or not low < high:
        raise InputError(f"{key}: needs min below max, both numbers")
    if not all(abs(v) <= sys.float_info.max for v in (low, high, q)):
        raise InputError(f"{key}: min, max and q must be finite numbers")
    if q <= 0:
        raise InputError(f"{key}.q = {q}: must be above 0")
    if method == "grid":
        raise InputError(f"{key}: a grid has no ranges; list its values")
    whole = isinstance(low, int) and isinstance(high, int)
    distribution = how.get("distribution", "int_uniform" if whole else "uniform")
    if distribution not in DISTRIBUTIONS:
        raise InputError(f"{key}.distribution = {distribution}: choose from {nearest(distribution, DISTRIBUTIONS)}")
    if distribution == "log_uniform_values" and low <= 0:
        raise InputError(f"{key}: log_uniform_values needs min above 0")
    if distribution == "int_uniform" and not whole:
        raise InputError(f"{key}: int_uniform needs whole numbers")
    if "q" in how and distribution != "q_uniform":
        raise InputError(f"{key}.q: applies to distribution q_uniform only")
    return Parameter(key, (), low, high, distribution, q)


def _rungs(tree: Any, problems: list[str]) -> tuple[int, int] | None:
    """(first rung, factor): of the trials that reach a rung only the best of `factor` continue. As W&B: rungs are at
    `min_iter` × eta^k, or with `max_iter` and `s` at `max_iter` / eta^s and up."""
    if tree is None:
        return None
    known = ("type", "min_iter", "max_iter", "s", "eta")
    if not isinstance(tree, dict) or tree.get("type") != "hyperband" or not set(tree) <= set(known):
        problems.append("early_terminate: write {type: hyperband, min_iter: n} or {type: hyperband, max_iter: n, s: k}")
        return None
    eta, first = tree.get("eta", 3), tree.get("min_iter")
    if first is None and all(isinstance(tree.get(key), int) for key in ("max_iter", "s", "eta") if key != "eta"):
        first = tree["max_iter"] // eta ** tree["s"] if isinstance(eta, int) else None
    if not (isinstance(first, int) and isinstance(eta, int) and first >= 1 and eta >= 2):
        problems.append("early_terminate: needs min_iter of at least 1 (or max_iter and s), and eta of at least 2")
        return None
    return first, eta


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
