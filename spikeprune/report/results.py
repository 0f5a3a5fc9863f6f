"""`result/…`: quality beside cost of one measured student, the numbers that sweeps compare; and their Pareto front."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

PREFIX = "result/"
COSTS = ("energy_pj", "ac", "mac", "norm_ops", "latency_steps", "rate", "params", "bytes")
NAMES = ("main", *COSTS, "energy_saving", "heads", "ffn", "t_steps")
QUALITY, ENERGY = f"{PREFIX}main", f"{PREFIX}energy_pj"


def names(quality: Iterable[str]) -> list[str]:
    """Every key of `results` for a task of which this is measured (`Task.quality`)."""
    return [PREFIX + name for name in dict.fromkeys((*NAMES, *quality))]


def results(row: Mapping[str, Any], teacher: Mapping[str, Any]) -> dict[str, float]:
    """`row`: a student stage's record or its row in `summary.json`, `teacher` that of the teacher.

    `heads` and `ffn` count kept units over all layers, `t_steps` is the mean of a layer, `energy_saving` the dense
    teacher's energy over this one's. Null, which stands for a number that is not finite, is left out.
    """
    cost, quality = row["cost"], {**row["metrics"], **row["fidelity"]}
    found = {name: value for name, value in quality.items() if "/" not in name}  # of the first dev split
    found |= {"main": row["main"], **{name: cost[name] for name in COSTS}}
    found["energy_saving"] = cost["energy_pj"] and teacher["cost"]["energy_pj"] / cost["energy_pj"]
    found |= {"heads": sum(row["heads"]), "ffn": sum(row["ffn"]), "t_steps": sum(row["t_steps"]) / len(row["t_steps"])}
    return {PREFIX + name: float(value) for name, value in found.items() if value is not None}


def front(points: Iterable[tuple[float, float]]) -> list[int]:
    """Indices of the points (cost, quality) that no other one beats or equals in both and beats in one; cheapest first.

    Of equal points the first one stays.
    """
    order = sorted(enumerate(points), key=lambda entry: (entry[1][0], -entry[1][1], entry[0]))
    kept: list[int] = []
    best = float("-inf")
    for index, (_, quality) in order:
        if quality > best:
            kept.append(index)
            best = quality
    return kept


def layer_rows(record: Mapping[str, Any]) -> tuple[list[str], list[Sequence[Any]]]:
    """(columns, rows) of what each layer keeps; the embedding's spiking layer has time steps only."""
    layers = zip(record["heads"], record["ffn"], record["t_steps"][1:], strict=True)
    rows = [["embedding", None, None, record["t_steps"][0]]]
    return ["layer", "heads", "neurons", "t_steps"], rows + [[str(i), *kept] for i, kept in enumerate(layers)]
