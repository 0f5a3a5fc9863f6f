"""The energy account: beside dense networks, and by layer and kind, under each energy model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spikeprune.report.energy_table import LEGEND, rows, sentences, timing_rows, timing_words
from spikeprune.report.numbers import digits, energy_unit
from spikeprune.report.page.chart import stacked
from spikeprune.report.page.markup import Markup, figure, figures, joined, keys, note, section, table, tag
from spikeprune.report.page.stages import final

Run = Mapping[str, Any]
# Kinds of the energy models: a word and a colour, of which one model uses none twice.
KINDS = {
    "ac": ("additions", "c1"),
    "arithmetic": ("arithmetic", "c1"),
    "mac": ("multiply-accumulates", "c2"),
    "synapse places": ("synapse places", "c2"),
    "weights": ("weights", "c3"),
    "norm": ("layer norm", "c3"),
    "membranes": ("membranes", "c4"),
    "softmax": ("softmax", "c4"),
    "spikes": ("spikes", "c5"),
    "updates": ("membrane updates", "c6"),
    "activations": ("activations", "c6"),
    "activation": ("gelu, tanh", "c7"),
    "addresses": ("addresses", "c7"),
}
LEAD = "Of a mean sentence of the dev split. An energy model is a function of counts, no measurement."


def energy(run: Run) -> Markup:
    found, last = run["energy"], final(run)
    record = last[1] if last else {}
    beside = _beside(record) if record.get("energy") else Markup("")
    if "missing" in found:
        return section("Energy", beside, note(found["missing"]), lead=LEAD)
    shown = figures(*(_by_layer(name, model) for name, model in found["models"].items()))
    measured = _measured(found["measured_ms"]) if "measured_ms" in found else ""
    return section("Energy", beside, measured, shown, _counted(found["models"]), lead=LEAD)


def _beside(record: Run) -> Markup:
    """The student beside dense networks under each model, and whether spikes pay."""
    head, *body = rows(record["energy"])
    verdicts = [tag("p", sentence) for sentence in sentences(record["energy"], record["cost"]["rate"])]
    return joined([*verdicts, table(head, body), tag("p", " ".join(LEGEND), class_="lead")])


def _measured(found: Run) -> Markup:
    """Milliseconds of a sentence on the machine that wrote the page."""
    head, *body = timing_rows(found)
    return joined([table(head, body, words=2), *(tag("p", words, class_="lead") for words in timing_words(found))])


def _by_layer(name: str, model: Run) -> Markup:
    kinds = {kind: values for kind, values in model["rows"].items() if any(values)}
    layers = len(next(iter(model["rows"].values()))) - 2
    names = ["embedding", *(f"layer {i + 1}" for i in range(layers)), "classifier"]
    total = sum(map(sum, kinds.values()))
    unit, size = energy_unit([max(1.0, *(sum(row) for row in zip(*kinds.values(), strict=True)))])
    parts = [(*KINDS.get(kind, (kind, "c8")), [pj / size for pj in values]) for kind, values in kinds.items()]
    drawn = stacked(name, names, parts, write=digits)
    return figure(f"{name}: {digits(total / size)} {unit}", drawn, keys((kind, colour) for kind, colour, _ in parts))


def _counted(models: Run) -> Markup:
    body = [[name, model["counted"], model["left_out"], model["source"]] for name, model in models.items()]
    shown = table(["energy model", "counts", "leaves out", "source"], body, words=4)
    return tag("details", tag("summary", "What each energy model counts"), shown)
