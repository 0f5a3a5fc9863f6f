"""Maps of what each layer keeps, and how often it fires."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spikeprune.report.page.grid import cells
from spikeprune.report.page.markup import Markup, figure, figures, note, section
from spikeprune.report.page.stages import final

Run = Mapping[str, Any]
MATRIX = {"query": "query", "key": "key", "value": "value", "out": "output", "up": "up", "down": "down"}


def layer_maps(run: Run) -> Markup:
    found, last = run["layers"], final(run)
    if "missing" in found:
        return section("Layers", note(found["missing"]))
    names = [f"layer {i + 1}" for i in range(len(found["heads"]))]
    shown = [_heads(found, names), _neurons(found, names), _synapses(found, names), _steps(found, names)]
    if last is not None and (rates := last[1]["cost"].get("rates")):
        shown.append(_rates(rates, names))
    lead = f"What {last[0] if last else 'the student'} keeps, and how often it fires."
    return section("Layers", figures(*shown), lead=lead)


def _heads(found: Run, names: list[str]) -> Markup:
    of, kept = found["of"]["heads"], found["kept"]["heads"]
    rows = [f"{name}: {n}" for name, n in zip(names, kept, strict=True)]

    def tip(i: int, j: int) -> str:
        return f"{names[i]}, head {j + 1}: {'kept' if found['heads'][i][j] else 'pruned'}"

    size = (min(38, max(14, 230 // of)), 20)
    drawn = cells("Heads", rows, [""] * of, found["heads"], tip=tip, cell=size)
    return figure(f"Attention heads kept, of {of} a layer", drawn, wide=True)


def _neurons(found: Run, names: list[str]) -> Markup:
    of, kept = found["of"]["neurons"], found["kept"]["neurons"]
    rows = [f"{name}: {n}" for name, n in zip(names, kept, strict=True)]
    bins = len(found["neurons"][0])

    def tip(i: int, j: int) -> str:
        begin, end = j * of // bins + 1, (j + 1) * of // bins
        return f"{names[i]}, neurons {begin} to {end}: {100 * found['neurons'][i][j]:.0f} % kept"

    drawn = cells("Neurons", rows, [""] * bins, found["neurons"], tip=tip, cell=(3.6, 20), left=96)
    return figure(f"Feed-forward neurons kept, of {of} a layer", drawn, wide=True)


def _synapses(found: Run, names: list[str]) -> Markup:
    columns = [MATRIX.get(name, name) for name in found["matrices"]]

    def tip(i: int, j: int) -> str:
        return f"{names[i]}, {columns[j]}: {100 * found['synapses'][i][j]:.1f} % of the matrix's synapses kept"

    def write(share: float) -> str:
        return f"{100 * share:.0f}"

    drawn = cells("Synapses", names, columns, found["synapses"], tip=tip, write=write, cell=(42, 20), left=60)
    return figure("Synapses kept, % of each matrix", drawn, wide=True)


def _steps(found: Run, names: list[str]) -> Markup:
    steps = found["t_steps"]
    rows = ["embedding", *names]
    values = [[1.0] * n for n in steps]

    def tip(i: int, j: int) -> str:
        return f"{rows[i]}: {steps[i]} steps"

    titles = [f"{row}: {n}" for row, n in zip(rows, steps, strict=True)]
    cell = (min(26, 220 // max(steps)), 20)
    drawn = cells("Time steps", titles, [""] * max(steps), values, high=1.6, tip=tip, cell=cell, left=96)
    return figure("Time steps of each layer", drawn, wide=True)


def _rates(rates: Mapping[str, float], names: list[str]) -> Markup:
    """Rows: layers; columns: the spiking layers of one."""
    parts = list(dict.fromkeys(name.rpartition(".")[2] for name in rates if name != "embedding"))
    rows = ["embedding", *names]
    values: list[list[float | None]] = [[None] * (len(parts) - 1) + [rates.get("embedding")]]
    values += [[rates.get(f"layers.{i}.{part}") for part in parts] for i in range(len(names))]

    def tip(i: int, j: int) -> str:
        return f"{rows[i]}{f', {parts[j]}' if i else ''}: {values[i][j]:.4f} spikes per neuron and step"

    def write(rate: float) -> str:
        return f"{rate:.2f}".removeprefix("0")

    high = max(rates.values())
    drawn = cells("Rates", rows, parts, values, high=high, tip=tip, write=write, cell=(36, 20), left=76, slanted=True)
    return figure("Firing rates, spikes per neuron and step", drawn, wide=True)
