"""Curves over the epochs of a whole run, from the records of `metrics.jsonl`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from spikeprune.cost.activity import place

Record = Mapping[str, Any]
Points = list[tuple[float, float]]


def curves(records: Sequence[Record]) -> dict[str, Any]:
    """Means of each epoch at the epoch's end, counted over all stages.

    `bands`: (stage, begin, end) in epochs; `score`, `rates`, `loss`: a curve for each name; `energy` and `lr`: one.
    """
    epochs = by_epoch(records)
    stages = list(dict.fromkeys(stage for stage, _ in epochs))
    ends = {key: number for number, key in enumerate(epochs, 1)}
    of_stage = {stage: [number for key, number in ends.items() if key[0] == stage] for stage in stages}

    def curve(key: str, *, of: Sequence[str] = stages, scale: float = 1.0) -> Points:
        values = {k: [r[key] for r in rows if r.get(key) is not None] for k, rows in epochs.items() if k[0] in of}
        return [(ends[k], scale * fmean(found)) for k, found in values.items() if found]

    keys = dict.fromkeys(key for record in records for key in record)
    terms = [key for key in keys if key.startswith("train/") and key != "train/lr" and "feedback" not in key]
    score = {"teacher": curve("val/main", of=["teacher"], scale=100)}
    score["student"] = curve("val/main", of=[s for s in stages if s != "teacher"], scale=100)
    return {
        "bands": [(stage, min(numbers) - 1, max(numbers)) for stage, numbers in of_stage.items()],
        "score": {name: points for name, points in score.items() if points},
        "loss": {key.removeprefix("train/"): curve(key) for key in terms},
        "energy": curve("cost/energy_pj"),
        "lr": curve("train/lr"),
        "rates": layer_rates(epochs, ends),
    }


def by_epoch(records: Sequence[Record]) -> dict[tuple[str, int], list[Record]]:
    """The records of each (stage, epoch), in order."""
    found: dict[tuple[str, int], list[Record]] = {}
    for record in records:
        if "epoch" in record:
            found.setdefault((record["stage"], int(record["epoch"])), []).append(record)
    return found


def layer_rates(
    epochs: Mapping[tuple[str, int], Sequence[Record]], ends: Mapping[tuple[str, int], int]
) -> dict[str, Points]:
    """Mean firing rate of the embedding and of each layer over its spiking layers."""
    found: dict[str, Points] = {}
    for key, records in epochs.items():
        rates: dict[int, list[float]] = {}
        for name, rate in (item for record in records for item in record.items()):
            if name.startswith("rate/"):
                rates.setdefault(place(name.removeprefix("rate/"))[0], []).append(rate)
        for layer, values in rates.items():
            name = "embedding" if layer < 0 else f"layer {layer + 1}"
            found.setdefault(name, []).append((ends[key], fmean(values)))
    return found
