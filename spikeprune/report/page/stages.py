"""The head of a run and the table of its stages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spikeprune.report.numbers import digits, energy_unit, si
from spikeprune.report.page.markup import Markup, joined, note, section, table, tag
from spikeprune.report.tables import LONG, banner, largest_line, score_line

Run = Mapping[str, Any]


def title(run: Run) -> str:
    preset = f" · preset {run['preset']}" if run["preset"] else ""
    return f"{run['task']}{preset} · seed {run['seed']}"


def final(run: Run) -> tuple[str, Run] | None:
    """Name and record of the last finished stage of the student."""
    done = [name for name in run["records"] if name != "teacher"]
    return (done[-1], run["records"][done[-1]]) if done else None


def head(run: Run) -> Markup:
    """What the scores are of, what is missing, and the result in a few numbers."""
    left = [name for name in run["stages"] if name not in run["records"]]
    warning = banner({"data": run["data"]})
    parts = [tag("p", run["name"], class_="meta")]
    parts += [tag("p", warning, class_="banner")] if warning else []
    parts += [note(record["note"]) for record in run["records"].values() if "note" in record]
    if left:
        text = f"Unfinished: {', '.join(left)} still to run. The same `spikeprune train` command resumes the run."
        parts.append(note(text))
    return joined([*parts, tiles(run)])


def tiles(run: Run) -> Markup:
    last = final(run)
    if last is None or "teacher" not in run["records"]:
        return Markup("")
    teacher, (name, record) = run["records"]["teacher"], last
    gap = 100 * (record["main"] - teacher["main"])
    before, after = teacher["cost"], record["cost"]
    numbers = [
        (f"{100 * record['main']:.1f}", f"score of {name}, {gap:+.1f} to the dense teacher"),
        (f"÷ {digits(before['energy_pj'] / after['energy_pj'])}", "energy of a sentence, to the dense teacher"),
        (f"÷ {digits(before['bytes'] / after['bytes'])}", f"bytes: {si(before['bytes'])} → {si(after['bytes'])}"),
        (f"{after['rate']:.3f}", "spikes per neuron and step"),
        (f"{sum(record['t_steps']) / len(record['t_steps']):.3g}", "time steps of a layer, mean"),
    ]
    parts = (tag("div", tag("b", value), tag("span", text), class_="tile") for value, text in numbers)
    return tag("div", *parts, class_="tiles")


def stage_table(run: Run) -> Markup:
    """A row for each finished stage: quality, cost, what is kept."""
    records = run["records"]
    if not records:
        return section("Stages", note("No stage is finished yet."))
    unit, size = energy_unit([record["cost"]["energy_pj"] for record in records.values()])
    metrics = list(next(iter(records.values()))["metrics"])
    shown = metrics if len(metrics) > 1 else []
    names = [LONG.get(name.rpartition("/")[2], name) + _split(name) for name in shown]
    columns = ["stage", "score", *names, "AC", "MAC", f"energy [{unit}]", "× less", "T", "heads", "neurons"]
    columns += ["steps", "parameters", "bytes", "trained [s]"]
    rows = [_row(name, record, records, shown, size) for name, record in records.items()]
    score = score_line(run) + largest_line(run) if run["main_metric"] else ""
    legend = f"{score} AC, MAC and energy of one sentence, padding left out; T: mean time steps of a layer."
    return section("Stages", table(columns, rows), lead=legend)


def _split(name: str) -> str:
    return f" ({name.rpartition('/')[0]})" if "/" in name else ""


def _row(name: str, record: Run, records: Run, metrics: list[str], size: float) -> list[str]:
    cost = record["cost"]
    less = records["teacher"]["cost"]["energy_pj"] / cost["energy_pj"] if "teacher" in records else None
    row = ["dense teacher" if name == "teacher" else name, f"{100 * record['main']:.1f}"]
    row += [f"{100 * record['metrics'][metric]:.1f}" for metric in metrics]
    row += [si(cost["ac"]), si(cost["mac"]), digits(cost["energy_pj"] / size), "" if less is None else digits(less)]
    if "t_steps" in record:
        row += [f"{sum(record['t_steps']) / len(record['t_steps']):.3g}", str(sum(record["heads"]))]
        row += [str(sum(record["ffn"])), si(cost["latency_steps"])]
    else:
        row += ["", "", "", ""]
    return [*row, si(cost["params"]), si(cost["bytes"]), f"{record['seconds']:.0f}"]
