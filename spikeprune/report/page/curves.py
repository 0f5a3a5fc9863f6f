"""Curves over the epochs of the whole run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spikeprune.report.numbers import digits, energy_unit
from spikeprune.report.page.chart import Series, lines
from spikeprune.report.page.markup import Markup, figure, figures, keys, note, section
from spikeprune.report.page.scale import short
from spikeprune.report.page.style import COLOURS, SHADES

X = "epochs of the run"


def curves(run: Mapping[str, Any]) -> Markup:
    found = run["curves"]
    if not found["bands"]:
        return section("Training", note("Nothing has been logged yet."))
    stages = ", ".join(name for name, *_ in found["bands"])
    shown = [
        _figure("Score on the dev split", found["score"], found["bands"], "score"),
        _loss(found),
        _energy(found),
        _rates(found),
        _figure("Learning rate of the weights", {"learning rate": found["lr"]}, found["bands"], "rate", zero=True),
    ]
    lead = f"Means of each epoch. Every second stage is shaded, in order: {stages}."
    return section("Training", figures(*filter(None, shown)), lead=lead)


def _figure(title: str, named: Mapping[str, list], bands: list, y_name: str, **more: Any) -> Markup:
    shown = [(name, points) for name, points in named.items() if points]
    series = [Series(name, COLOURS[i % len(COLOURS)], points) for i, (name, points) in enumerate(shown)]
    return _drawn(title, series, bands, y_name, **more)


def _drawn(title: str, series: list[Series], bands: list, y_name: str, **more: Any) -> Markup:
    if not series:
        return Markup("")
    legend = keys((one.name, one.colour) for one in series) if len(series) > 1 else ""
    return figure(title, lines(title, series, x_name=X, y_name=y_name, bands=bands, **more), legend)


def _rates(found: Mapping[str, Any]) -> Markup:
    """Layers in shades, from the embedding up."""
    last = max(1, len(found["rates"]) - 1)
    rates = enumerate(found["rates"].items())
    series = [Series(name, f"s{i * (SHADES - 1) // last}", points) for i, (name, points) in rates]
    return _drawn("Firing rate by layer", series, found["bands"], "spikes per neuron and step", zero=True)


def _loss(found: Mapping[str, Any]) -> Markup:
    """Terms without their weights, and their weighted sum."""
    named = {"sum": found["loss"].get("loss", []), **{k: v for k, v in found["loss"].items() if k != "loss"}}
    return _figure("Loss and its terms, before their weights", named, found["bands"], "loss", log=True)


def _energy(found: Mapping[str, Any]) -> Markup:
    if not found["energy"]:
        return Markup("")
    unit, size = energy_unit([pj for _, pj in found["energy"]])
    points = [(x, pj / size) for x, pj in found["energy"]]
    name = f"energy of a sentence [{unit}]"
    log = max(y for _, y in points) > 4 * min(y for _, y in points)

    def write(value: float) -> str:
        return short(value) if log else digits(value)

    return _figure("Energy", {"energy": points}, found["bands"], name, log=log, write=write)
