"""Rasters of spikes on single sentences, word by word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp
from typing import Any

from spikeprune.report.page.chart import drawing, label, rect, upwards
from spikeprune.report.page.grid import cells
from spikeprune.report.page.markup import Markup, figure, joined, keys, note, section, tag

ROW = 2.6  # height of a channel
LEFT = 84


def spikes(run: Mapping[str, Any]) -> Markup:
    found = run["spikes"]
    if "missing" in found:
        return section("Spikes, word by word", note(found["missing"]))
    labels = run["predictions"].get("labels")
    signs = keys((("spike", "c1"), ("negative spike", "c2")))
    lead = "The final student, simulated step by step. A word's column holds its time steps from left to right."
    return section("Spikes, word by word", signs, *(_sentence(one, labels) for one in found), lead=lead)


def _sentence(found: Mapping[str, Any], labels: Sequence[str] | None) -> Markup:
    cut = f" Shown are its first {len(found['tokens'])} tokens." if found["cut"] else ""
    return joined(
        [
            tag("blockquote", " ‖ ".join(found["text"])),
            tag("p", f"{prediction(found['logits'], found['label'], labels)}{cut}", class_="lead"),
            figure("Firing rate of each word by spiking layer", _rates(found), wide=True),
            figure("Spikes of the embedding and of each layer's output", _raster(found), wide=True),
        ]
    )


def prediction(logits: Sequence[float], truth: float | None, labels: Sequence[str] | None) -> str:
    """The student's prediction for a sentence, and the label where it is known."""
    if len(logits) == 1:
        return f"Prediction {logits[0]:.2f}{'' if truth is None else f', label {truth:g}'}."
    names = labels or [str(i) for i in range(len(logits))]
    top = max(logits)
    total = sum(exp(x - top) for x in logits)
    best = logits.index(top)
    label = "" if truth is None else f", label {names[int(truth)]}"
    return f"Prediction {names[best]} at {100 / total:.0f} %{label}."


def _rates(found: Mapping[str, Any]) -> Markup:
    spiking_layers = list(found["rates"])
    names = [_short(spiking_layer) for spiking_layer in spiking_layers]
    values = [found["rates"][spiking_layer] for spiking_layer in spiking_layers]

    def tip(i: int, j: int) -> str:
        return f"{names[i]}, {found['tokens'][j]}: {values[i][j]:.3f} spikes per neuron and step"

    high = max(max(row) for row in values)
    return cells("Rates", names, found["tokens"], values, high=high, tip=tip, cell=(24, 14), left=100, slanted=True)


def _short(spiking_layer: str) -> str:
    """`layers.0.key` → `1 key`."""
    if spiking_layer == "embedding":
        return spiking_layer
    _, layer, part = spiking_layer.split(".")
    return f"{int(layer) + 1} {part}"


def _raster(found: Mapping[str, Any]) -> Markup:
    """A strip for each spiking layer below the words: channels from above, and in each word's column its steps."""
    words, trains = found["tokens"], found["trains"]
    step = 4.0 if max(train["t_steps"] for train in trains.values()) > 6 else 6.0
    column = max(train["t_steps"] for train in trains.values()) * step + 8
    top = 12 + 7.2 * max(map(len, words))
    parts: list[object] = [upwards(LEFT + (j + 0.5) * column + 4, top - 6, word) for j, word in enumerate(words)]
    y = top
    for spiking_layer, train in trains.items():
        height = train["rows"] * ROW
        name = "embedding" if spiking_layer == "embedding" else f"layer {_short(spiking_layer).split()[0]}"
        parts.append(label(LEFT - 8, y + height / 2 - 2, name, "end"))
        parts.append(label(LEFT - 8, y + height / 2 + 12, f"{train['rows']} of {train['of']}", "end"))
        parts += _strip(spiking_layer, train, words, y, step, column)
        y += height + 8
    return drawing("Spikes", *parts, width=LEFT + len(words) * column + 8, height=y, fixed=True)


def _strip(
    spiking_layer: str, train: Mapping[str, Any], words: Sequence[str], y: float, step: float, column: float
) -> list[Markup]:
    height = train["rows"] * ROW
    counts = [0] * len(words)
    runs: dict[int, list[str]] = {1: [], -1: []}
    for row, token, t, sign in train["spikes"]:
        counts[token] += 1
        runs[sign].append(f"M{LEFT + token * column + 4 + t * step:g} {y + (row + 0.5) * ROW:g}h{step - 1.6:g}")
    places = train["rows"] * train["t_steps"]
    name, told = _short(spiking_layer), zip(words, counts, strict=True)
    tips = [f"{word}, {name}: {count} spikes in {places} places" for word, count in told]
    backs = [rect(LEFT + j * column + 1, y, column - 2, height, "band", tip) for j, tip in enumerate(tips)]
    drawn = [
        tag("path", d="".join(path), class_=f"{colour} spike", pointer_events="none")
        for path, colour in ((runs[1], "c1"), (runs[-1], "c2"))
        if path
    ]
    return [*backs, *drawn]
