"""Sentences and records about a budget: the lowest reachable cost, and how near to its goal a stage ended."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

TOLERANCE = 0.02  # of the goal: a cost that is closer below it counts as reached

EQUAL_BITS = "the same network's, computed densely at equal bits,"


def goal_of(target: str, share: float, reference: float) -> float:
    """The cost to end with, in the unit of `CostMeter`; latency is whole steps, so the next below."""
    goal = share * reference
    return float(max(1, math.floor(goal + 1e-9))) if target == "latency" else goal


def in_words(value: float, *, target: str, relative_to: str, unit: float, up: bool = False) -> str:
    """A cost as a share of `unit`: `0.0213 of the dense teacher's energy`, for latency with the steps. `up`: rounded
    up, so that it is a share that can be reached."""
    share = math.ceil(value / unit * 1e4) / 1e4 if up else value / unit
    whose = "the dense teacher's" if relative_to == "dense" else "the uncompressed student's"
    what = {"ac": "additions", "energy": "energy", "latency": f"latency ({value:.0f} steps)"}
    if target == "equal_bits" and relative_to == "dense":
        return f"{share:.4g} of {EQUAL_BITS} energy"
    if target == "ac" and relative_to == "dense":
        return f"{share:.4g} of the dense teacher's multiplications, in additions"
    return f"{share:.4g} of {whose} {what[target]}"


def shortfall(value: float, reported: float, *, goal: float, start: float | None, sentences: int) -> str:
    """Why the cost of a finished stage is not within TOLERANCE of its goal; empty if it is. `value`: as the budget
    measured it on `sentences` training sentences; `reported`: on the dev split; `start`: before the first decision."""
    off = value / goal - 1
    if off > 0:
        return "nothing is left that the floors allow to remove"
    if -off > TOLERANCE and start is not None and start <= goal:
        return "the stage began below the target"
    if -off > TOLERANCE:
        return "firing rates fell after the last decision, or the next unit to return would exceed the target"
    if abs(reported / goal - 1) > TOLERANCE:
        return f"the budget was measured on {sentences} training sentences, the report on the dev split"
    return ""


def cost_in_unit(target: str, measured: Mapping[str, Any], teacher: Mapping[str, Any], model: str) -> float:
    """A measured student in the unit of `CostMeter`, energy under `model`, given its dense teacher as measured."""
    if target == "latency":
        return float(measured["cost"]["latency_steps"])
    if target == "ac":
        return measured["cost"]["ac"] / teacher["cost"]["mac"]
    energies = measured["energy"][model]
    return energies["student"] / energies["equal_bits" if target == "equal_bits" else "teacher"]


def budget_record(
    *,
    target: str,
    relative_to: str,
    share: float,
    unit: float,
    goal: float,
    value: float,
    reported: float,
    drift: float,
    why_not: str,
) -> dict[str, Any]:
    """The entry of a stage's record; costs as shares of `unit`."""
    return {
        "target": target,
        "of": relative_to,
        "share": share,
        "goal": goal / unit,
        "reached": value / unit,
        "reported": reported / unit,
        "drift": drift,
        "within": abs(reported / goal - 1) <= TOLERANCE,
        "why_not": why_not,
    }
