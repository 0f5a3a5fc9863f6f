"""The table of energy models × dense opponents, and what it says in a sentence.

Read from `energy`, plain numbers as `cost.opponents.comparison` returns them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

from spikeprune.report.markdown import table
from spikeprune.report.numbers import columns, digits, si

WIDTH = 110  # of the sentences, in characters
Energy = Mapping[str, Mapping[str, Any]]
OPPONENTS = {"teacher": "dense teacher", "masked_teacher": "teacher, masked", "equal_bits": "equal bits"}
TIMED = {"student": "student", **OPPONENTS, "teacher_int8": "dense teacher, int8"}
LEGEND = (
    "pJ of a sentence; ÷: an opponent's energy over the student's. masked: the dense teacher with the student's units",
    "and synapses alone; equal bits: the student itself computed densely, each train as one number of few bits.",
)


def rows(energy: Energy) -> list[list[str]]:
    """A head, then a row for each model: the student's energy, each opponent's with the ratio, where spikes pay."""
    found = [["energy model", "student", *(part for name in OPPONENTS.values() for part in (name, "÷")), "pays below"]]
    for model, row in energy.items():
        cells = [part for name in OPPONENTS for part in (_pj(row[name]), _ratio(row["ratios"][name]))]
        found.append([model, _pj(row["student"]), *cells, _rate(row)])
    return found


def _pj(value: float | None) -> str:
    return "-" if value is None else si(value)


def _ratio(value: float | None) -> str:
    return "-" if value is None else digits(value)


def _rate(row: Mapping[str, Any]) -> str:
    """The firing rate below which the student takes less than at equal bits."""
    if row["equal_bits"] is None:
        return "-"
    return "no rate" if row["pays_below"] is None else f"{100 * row['pays_below']:.1f} %"


def energy_lines(energy: Energy, rate: float) -> list[str]:
    """The table in plain text with its sentence and legend; `rate`: the student's mean firing rate."""
    verdicts = [line for text in sentences(energy, rate) for line in wrap(text, WIDTH)]
    return [*columns(rows(energy)), "", *verdicts, *LEGEND]


def timing_rows(found: Mapping[str, Any]) -> list[list[str]]:
    """A head, then milliseconds of a sentence of each network in each program, and their ratio to the student's in the
    same program; `-` where one of the two is absent."""
    student = {form["runs_in"]: form["ms"] for form in found["forms"] if form["network"] == "student" and "ms" in form}
    rows = [["measured", "in", "ms", "÷"]]
    for form in found["forms"]:
        ms, own = form.get("ms"), student.get(form["runs_in"])
        cells = ["-" if ms is None else f"{ms:.2f}", "-" if None in (ms, own) else digits(ms / own)]
        rows.append([TIMED[form["network"]], form["runs_in"], *cells])
    return rows


def timing_words(found: Mapping[str, Any]) -> list[str]:
    """The conditions of the measurement, and why forms are absent."""
    where = f"batch 1, one thread, mean of {found['sentences']} sentences, on this machine: {found['machine']}"
    absent = [f"{TIMED[f['network']]} in {f['runs_in']}: {f['absent']}" for f in found["forms"] if "absent" in f]
    return [f"{where}; ÷: over the student's time in the same program", *absent]


def timing_lines(found: Mapping[str, Any]) -> list[str]:
    return [*columns(timing_rows(found)), *timing_words(found)]


def energy_markdown(energy: Energy) -> str:
    head, *body = rows(energy)
    return table(head, body)


def sentences(energy: Energy, rate: float) -> list[str]:
    """Under which models spikes pay against equal bits, and below which firing rate they would under the others."""
    known = {model: row for model, row in energy.items() if row["equal_bits"] is not None}
    if not known:
        return ["Dense activations, no spikes: every product is a multiply-accumulate."]
    paying = [model for model, row in known.items() if row["ratios"]["equal_bits"] > 1]
    losing = {model: row["pays_below"] for model, row in known.items() if model not in paying}
    would = [f"{model} below {100 * at:.1f} %" for model, at in losing.items() if at is not None]
    never = [model for model, at in losing.items() if at is None]
    found = f"Firing at {100 * rate:.1f} %, spikes take less energy than the same network at equal bits under "
    found += f"{_listed(paying)}." if paying else "no model."
    more = []
    if would:
        more.append(f"They would under {_listed(would)}.")
    if never:
        more.append(f"At no firing rate would they under {_listed(never)}.")
    return [found, *([" ".join(more)] if more else [])]


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
