"""The energy account: by layer and kind under each model, and beside dense networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spikeprune.report.page.chart import stacked
from spikeprune.report.page.markup import Markup, figure, figures, keys, note, section
from spikeprune.report.page.style import COLOURS
from spikeprune.report.tables import digits, energy_unit

Run = Mapping[str, Any]


def energy(run: Run) -> Markup:
    found = run["energy"]
    if "missing" in found:
        return section("Energy", note(found["missing"]))
    lead = "Of a mean sentence of the dev split. An energy model is a function of counts, no measurement."
    return section("Energy", figures(*(_by_layer(name, model) for name, model in found["models"].items())), lead=lead)


def _by_layer(name: str, model: Run) -> Markup:
    rows = list(model["rows"].items())
    layers = len(rows[0][1]) - 2
    names = ["embedding", *(f"layer {i + 1}" for i in range(layers)), "classifier"]
    unit, size = energy_unit([max(1.0, sum(map(sum, model["rows"].values())))])
    parts = [(kind, COLOURS[i % len(COLOURS)], [pj / size for pj in values]) for i, (kind, values) in enumerate(rows)]
    drawn = stacked(name, names, parts, write=lambda value: f"{digits(value)}")
    total = sum(map(sum, model["rows"].values()))
    title = f"{name}: {digits(total / size)} {unit}, ÷ {digits(model['teacher'] / total)} to the dense teacher"
    shown = [(kind, colour) for kind, colour, values in parts if any(values)]
    return figure(title, drawn, keys(shown))
