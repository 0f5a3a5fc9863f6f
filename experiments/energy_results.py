"""The tables of energy models × dense opponents of kept runs, and of firing rates; part of `results.py`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from result_tables import markdown, setting_name

from spikeprune.report.energy_table import OPPONENTS
from spikeprune.report.numbers import digits

ROOT = Path(__file__).resolve().parents[1]
RATES = ROOT / "experiments" / "results" / "rates"  # kept by rate_sweep.py
FIGURE = ROOT / "docs" / "figures" / "firing-rates.svg"
NONE_YET = "No run has been kept that was measured under these models."
Group = Sequence[dict]  # summaries of one setting, its seeds


def final(summary: dict) -> dict:
    return summary["stages"][summary["final"]]


def measured(groups: Sequence[Group]) -> list[Group]:
    return [group for group in groups if all("energy" in final(summary) for summary in group)]


def ratio_table(groups: Sequence[Group], models: Sequence[str] | None = None) -> str:
    """A row for each setting, a column for each model (of `models`, or all): its energy against each opponent's, means
    over seeds."""
    groups = measured(groups)
    if not groups:
        return NONE_YET
    models = list(final(groups[0][0])["energy"]) if models is None else models
    lines = [[*setting_name(group[0]), *(" / ".join(ratios(group, model)) for model in models)] for group in groups]
    legend = f"In each cell how many times less a sentence takes than {', than '.join(OPPONENTS.values())}."
    return f"{markdown(['task', 'preset, data', *models], lines)}\n\n{legend}"


def ratios(group: Group, model: str) -> list[str]:
    rows = [final(summary)["energy"][model]["ratios"] for summary in group]
    return ["-" if rows[0][name] is None else digits(mean(row[name] for row in rows)) for name in OPPONENTS]


def detail_table(groups: Sequence[Group]) -> str:
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
            lines.append([*setting_name(group[0]), model, *energies, divided, f"{100 * rate:.1f} %", pays(rows)])
    return markdown(columns, lines)


def energy(values: Sequence[float | None]) -> str:
    return "-" if None in values else f"{mean(values) / 1e3:,.0f} nJ"


def pays(rows: Sequence[dict]) -> str:
    if rows[0]["equal_bits"] is None:
        return "-"
    rates = [row["pays_below"] for row in rows]
    return "no rate" if None in rates else f"{100 * mean(rates):.1f} %"


# ------------------------------------------------------------------------------------------------------- firing rates


def rate_tables(found: dict[str, Any]) -> str:
    """Score, firing rate and the ratio to the equal-bit opponent under each model, for each limit of the additions;
    then the budgets under two models, with what they keep."""
    rows, models = found["limits"], list(found["limits"][0]["energy"])
    lines = [
        [row["name"], f"{100 * row['main']:.1f}", f"{100 * row['rate']:.1f} %", *(equal_bits(row, m) for m in models)]
        for row in rows
    ]
    text = markdown(["", "score", "firing rate", *models], lines)
    text += (
        "\n\nIn each cell how many times less a sentence takes than the same network computed densely at equal bits. "
    )
    text += f"Dense teacher: {100 * rows[0]['teacher']:.1f}. Of preset {found['preset']}, {found['data']}; "
    text += f"seed {found['seed']}, {found['hardware']}, commit `{found['commit']}`."
    if found["budgets"]:
        text += f"\n\n{budget_table(found['budgets'])}"
    return text


def equal_bits(row: dict[str, Any], model: str) -> str:
    ratio = row["energy"][model]["ratios"]["equal_bits"]
    return "-" if ratio is None else digits(ratio)


def budget_table(rows: Sequence[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        kept = [" ".join(map(str, row[key])) for key in ("heads", "ffn", "t_steps")]
        shares = [row["energy"][m]["student"] / row["energy"][m]["teacher"] for m in ("convention", "memory")]
        cells = [f"{100 * row['main']:.1f}", f"{100 * row['rate']:.1f} %", *(f"{100 * s:.2f} %" for s in shares)]
        lines.append([row["name"], *cells, *kept])
    head = ["", "score", "firing rate", "of the teacher, convention", "of the teacher, memory", "heads", "neurons", "T"]
    return markdown(head, lines)


def rate_figure(found: dict[str, Any], path: Path = FIGURE) -> None:
    """Score over firing rate, and the ratio to the equal-bit opponent under each model."""
    from spikeprune.report.figures import COLOURS, INK, new_figure, save_figure

    rows = sorted(found["limits"], key=lambda row: row["rate"])
    rates = [100 * row["rate"] for row in rows]
    figure = new_figure(9.0, 4.0)
    left, right = figure.subplots(1, 2)
    left.plot(rates, [100 * row["main"] for row in rows], color=COLOURS[0], marker="o")
    left.axhline(100 * rows[0]["teacher"], color=INK, linestyle=(0, (4, 3)), linewidth=0.9)
    left.set(xlabel="firing rate, %", ylabel="score (dashed: dense teacher)")
    for i, model in enumerate(rows[0]["energy"]):
        ratios = [row["energy"][model]["ratios"]["equal_bits"] for row in rows]
        if None not in ratios:
            right.plot(rates, ratios, color=COLOURS[i % len(COLOURS)], marker=".", label=model)
    right.axhline(1, color=INK, linestyle=(0, (4, 3)), linewidth=0.9)
    right.set(xlabel="firing rate, %", ylabel="times less energy than at equal bits", yscale="log")
    right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{found['task']}, preset {found['preset']}", fontsize=10, color=INK)
    save_figure(figure, path)
