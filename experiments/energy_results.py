"""The tables of energy models × dense opponents of kept runs; part of `results.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import mean

from spikeprune.report.energy_table import OPPONENTS
from spikeprune.report.numbers import digits

NONE_YET = "No run has been kept that was measured under these models."
Group = Sequence[dict]  # summaries of one setting, its seeds


def final(summary: dict) -> dict:
    return summary["stages"][summary["final"]]


def measured(groups: Sequence[Group]) -> list[Group]:
    return [group for group in groups if all("energy" in final(summary) for summary in group)]


def ratio_table(groups: Sequence[Group], named: Callable[[dict], list[str]], markdown: Callable[..., str]) -> str:
    """A row for each setting, a column for each model: its energy against each opponent's, means over seeds."""
    groups = measured(groups)
    if not groups:
        return NONE_YET
    models = list(final(groups[0][0])["energy"])
    lines = [[*named(group[0]), *(" / ".join(ratios(group, model)) for model in models)] for group in groups]
    legend = f"In each cell how many times less a sentence takes than {', than '.join(OPPONENTS.values())}."
    return f"{markdown(['task', 'preset, data', *models], lines)}\n\n{legend}"


def ratios(group: Group, model: str) -> list[str]:
    rows = [final(summary)["energy"][model]["ratios"] for summary in group]
    return ["-" if rows[0][name] is None else digits(mean(row[name] for row in rows)) for name in OPPONENTS]


def detail_table(groups: Sequence[Group], named: Callable[[dict], list[str]], markdown: Callable[..., str]) -> str:
    """A row for each setting and model: energies of a sentence in nJ, and the firing rate below which spikes pay."""
    groups = measured(groups)
    if not groups:
        return NONE_YET
    columns = ["task", "preset, data", "model", "student", *OPPONENTS.values(), "÷", "firing rate", "pays below"]
    lines = []
    for group in groups:
        rate = mean(final(summary)["cost"]["rate"] for summary in group)
        for model in final(group[0])["energy"]:
            rows = [final(summary)["energy"][model] for summary in group]
            energies = [energy([row[name] for row in rows]) for name in ("student", *OPPONENTS)]
            divided = " / ".join(ratios(group, model))
            lines.append([*named(group[0]), model, *energies, divided, f"{100 * rate:.1f} %", pays(rows)])
    return markdown(columns, lines)


def energy(values: Sequence[float | None]) -> str:
    return "-" if None in values else f"{mean(values) / 1e3:,.0f} nJ"


def pays(rows: Sequence[dict]) -> str:
    if rows[0]["equal_bits"] is None:
        return "-"
    rates = [row["pays_below"] for row in rows]
    return "no rate" if None in rates else f"{100 * mean(rates):.1f} %"
