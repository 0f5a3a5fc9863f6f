"""The tables of energy models × dense opponents of kept runs, and of firing rates; part of `results.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from result_tables import Group, rate, scores, setting_name

from spikeprune.report.energy_table import OPPONENTS
from spikeprune.report.markdown import table
from spikeprune.report.numbers import digits, si

ROOT = Path(__file__).resolve().parents[1]
FIGURE = ROOT / "docs" / "figures" / "firing-rates.svg"
NONE_YET = "No run has been kept that was measured under these models."


def final(summary: dict) -> dict:
    return summary["stages"][summary["final"]]


def ratio_table(
    groups: Sequence[Group], models: Sequence[str] = (), opponents: Sequence[str] = tuple(OPPONENTS)
) -> str:
    """How many times less energy than the opponents; `models`: all where none is named."""

    def cell(rows: Sequence[dict]) -> str:
        found = [[row["ratios"][name] for row in rows] for name in opponents]
        return " / ".join("-" if None in ratios else digits(fmean(ratios)) for ratios in found)

    return by_model(groups, cell, models)


def energy_table(groups: Sequence[Group]) -> str:
    """µJ of a sentence: the student / the dense teacher."""
    return by_model(
        groups, lambda rows: " / ".join(micro([row[name] for row in rows]) for name in ("student", "teacher"))
    )


def pays_table(groups: Sequence[Group]) -> str:
    """The firing rate below which the student takes less than at equal bits."""

    def cell(rows: Sequence[dict]) -> str:
        if rows[0]["equal_bits"] is None:
            return "-"
        rates = [row["pays_below"] for row in rows]
        if None in rates:
            return "none"
        return f"{100 * fmean(rates):.1f} %" if min(rates) < 1 else "any"

    return by_model(groups, cell)


def by_model(groups: Sequence[Group], cell: Callable[[Sequence[dict]], str], models: Sequence[str] = ()) -> str:
    """A row for each setting, with its score beside the teacher's and its firing rate, and a column for each energy
    model; `cell` reads a model's rows of all seeds."""
    groups = [group for group in groups if all("energy" in final(summary) for summary in group)]
    if not groups:
        return NONE_YET
    models = models or list(final(groups[0][0])["energy"])
    lines = []
    for group in groups:
        cells = [cell([final(summary)["energy"][model] for summary in group]) for model in models]
        lines.append([*setting_name(group[0]), kept_score(group), f"{fmean(map(rate, group)):.1f} %", *cells])
    return table(["setting", "task", "score", "firing rate", *models], lines)


def kept_score(group: Group) -> str:
    """`89.7 → 87.6`: the mean score of the dense teachers and of the last students."""

    def means(of_seeds: Sequence[list[float]]) -> str:
        return " / ".join(f"{fmean(values):.1f}" for values in zip(*of_seeds, strict=True))

    teachers, _, students = zip(*map(scores, group), strict=True)
    return f"{means(teachers)} → {means(students)}"


def micro(picojoules: Sequence[float]) -> str:
    """Their mean in µJ, three digits."""
    value = fmean(picojoules) / 1e6
    return si(value) if value >= 1 else f"{value:.3g}"


# ------------------------------------------------------------------------------------------------------- firing rates


def rate_tables(found: dict[str, Any]) -> str:
    """For each limit of the additions the score, firing rate and ratio to the equal-bit opponent under each model; then
    the budgets under two models, with what they keep."""
    rows, models = found["limits"], list(found["limits"][0]["energy"])
    parts = [
        f"{found['task']}, preset {found['preset']}, {found['data']}; dense teacher {100 * rows[0]['teacher']:.1f}; "
        f"seed {found['seed']}, {found['hardware']}, commit `{found['commit']}`."
    ]
    if len(rows) > 1:
        lines = [[*rate_cells(row), *(equal_bits(row, model) for model in models)] for row in rows]
        parts.append(table(["", "score", "firing rate", *models], lines))
    return "\n\n".join([*parts, *([budget_table(found["budgets"])] if found["budgets"] else [])])


def rate_cells(row: dict[str, Any]) -> list[str]:
    return [row["name"], f"{100 * row['main']:.1f}", f"{100 * row['rate']:.1f} %"]


def equal_bits(row: dict[str, Any], model: str) -> str:
    ratio = row["energy"][model]["ratios"]["equal_bits"]
    return "-" if ratio is None else digits(ratio)


def budget_table(rows: Sequence[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        shares = [row["energy"][m]["student"] / row["energy"][m]["teacher"] for m in ("convention", "memory")]
        kept = [" ".join(map(str, row[key])) for key in ("heads", "ffn", "t_steps")]
        lines.append([*rate_cells(row), *(f"{100 * share:.2f} %" for share in shares), *kept])
    head = ["", "score", "firing rate", "of the teacher, convention", "of the teacher, memory", "heads", "neurons", "T"]
    return table(head, lines)


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
