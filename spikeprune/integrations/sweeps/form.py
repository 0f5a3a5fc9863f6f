"""The sections of a sweep's file: its command, its parameters and early termination. What is wrong is added to a list
of problems, or raised where one parameter has no meaning."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spikeprune.errors import InputError, nearest

DISTRIBUTIONS = ("uniform", "log_uniform_values", "int_uniform", "q_uniform")
ARGS = "${args_no_hyphens}"  # macro of W&B's agent: each parameter as key=value
HEAD = ["${env}", "${interpreter}", "-m", "spikeprune", "train"]
OF_AGENT = "${oc.env:WANDB_"  # variables that only an agent sets for its trials
OWN_DIR = "${oc.env:WANDB_RUN_ID}"  # the agent's name for a trial, which OmegaConf reads from the environment


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


def command(command: Any, problems: list[str]) -> tuple[str, tuple[str, ...]]:
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


def parameters(tree: Any, method: str, problems: list[str]) -> tuple[Parameter, ...]:
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


def rungs(tree: Any, problems: list[str]) -> tuple[int, int] | None:
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
