"""The ablation's table and CSV: quality and cost of each compression method, over seeds, from plain summaries.

Of a `summary.json` this reads `main_metric`, `teacher.{metrics,main,cost}`, `uncompressed`, `final` and of those stages
`{metrics,main,cost,budget,fidelity}`, the last two where there are any.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from spikeprune.report.markdown import table
from spikeprune.report.numbers import digits, energy_unit, si, spread
from spikeprune.report.results import front
from spikeprune.report.tables import banner

Summary = Mapping[str, Any]
COSTS = ("ac", "mac", "energy_pj", "latency_steps", "bytes")
TEACHER, STUDENT = "dense teacher", "spiking student"
FAITHFUL = {
    "KL": "Agreement: % of the dev split with the teacher's label; KL: mean of KL(teacher ‖ student), nats.",
    "squared difference": "Squared difference: mean, between the student's outputs and the teacher's.",
}


def rows(found: Mapping[tuple[str, int], Summary]) -> list[dict[str, Any]]:
    """One flat row for each (ablation, seed), and of each seed the teacher and the uncompressed student first."""
    seeds = sorted({seed for _, seed in found})
    out = []
    for seed in seeds:
        first = next(summary for (_, s), summary in found.items() if s == seed)
        compressed = [s for (_, n), s in found.items() if n == seed and s["uncompressed"] not in (None, s["final"])]
        student = compressed[0] if compressed else None  # where nothing is compressed the student is what it ends with
        out.append(_row(TEACHER, seed, first["teacher"], first))
        if student is not None:
            out.append(_row(STUDENT, seed, student["stages"][student["uncompressed"]], first))
    return out + [_row(name, seed, s["stages"][s["final"]], s) for (name, seed), s in found.items()]


def _row(name: str, seed: int, part: Summary, summary: Summary) -> dict[str, Any]:
    cost, dense = part["cost"], summary["teacher"]["cost"]
    row = {"ablation": name, "seed": seed, **part["metrics"], "score": part["main"], **part.get("fidelity", {})}
    row |= {key: cost[key] for key in COSTS if key in cost}
    row["energy_saving"] = dense["energy_pj"] / cost["energy_pj"]
    return row


def to_csv(flat: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for row in flat for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def to_markdown(found: Mapping[tuple[str, int], Summary], failed: Mapping[tuple[str, int], str], tag: str = "") -> str:
    """One line for each ablation: means over its seeds, ± the standard deviation where there are several.

    `tag`, such as `-at-0.07`, distinguishes this table from others of the same task."""
    flat, (example, *_) = rows(found), found.values()
    by_name: dict[str, list[dict[str, Any]]] = {}
    for row in flat:
        by_name.setdefault(row["ablation"], []).append(row)
    metrics = list(example["teacher"]["metrics"])
    unit, size = energy_unit([row["energy_pj"] for row in flat])
    faithful = fidelity_columns(flat)
    head = ["", *metrics, *faithful, "AC", "MAC", f"energy [{unit}]", "× less", "latency [steps]", "bytes", "seeds"]
    lines = []
    for name, group in by_name.items():
        line = [name, *(spread([100 * row[m] for row in group]) for m in metrics)]
        line += [spread([row[key] for row in group if key in row], form) for key, form in faithful.values()]
        line += [spread([row[key] for row in group], si) for key in ("ac", "mac")]
        line.append(spread([row["energy_pj"] / size for row in group], digits))
        line.append(spread([row["energy_saving"] for row in group], digits))
        steps = [row["latency_steps"] for row in group if "latency_steps" in row]
        line += [spread(steps, digits), spread([row["bytes"] for row in group], si)]
        lines.append([*line, " ".join(str(row["seed"]) for row in group)])
    notes = [banner(example)] if banner(example) else []
    task = f"{example['task']} · preset {example['preset']} · data {example['data']['source']}"
    text = [
        f"{task} · {tag[1:]}" if tag else task,
        "",
        *notes,
        *([""] if notes else []),
        table(head, lines),
        "",
    ]
    text.append("Means of the dev split, one sentence, padding left out; energy by cost.model; ± is the")
    text.append("standard deviation over seeds. Every ablation starts from the same spiking student of its seed;")
    text.append("dense, which does not spike, from the same teacher.")
    text += [FAITHFUL[column] for column in faithful if column in FAITHFUL]
    ways = {name: group for name, group in by_name.items() if name not in (TEACHER, STUDENT)}
    points = [
        tuple(statistics.fmean(row[key] for row in group) for key in ("energy_pj", "score")) for group in ways.values()
    ]
    best = [list(ways)[i] for i in front(points)]
    text.append(f"On the Pareto front of energy and score, cheapest first: {', '.join(best)}.")
    text += paired(ways, {"score": "score"} | {heading: key for heading, (key, _) in faithful.items()})
    for (name, seed), summary in found.items():
        budget = summary["stages"][summary["final"]].get("budget")
        if budget and not budget["within"]:
            text.append(f"- {name}, seed {seed}: off its target by more than 2 %: {budget['why_not']}")
    text += [f"- {name}, seed {seed}: {reason}" for (name, seed), reason in failed.items()]
    return "\n".join(text) + "\n"


def fidelity_columns(flat: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, Callable[[float], str]]]:
    """Heading -> (key, form) of how near students are to their teacher on the first dev split, if any row has it."""
    if not any("divergence" in row for row in flat):
        return {}
    regression = not any("agreement" in row for row in flat)
    columns = {"agreement": ("agreement", lambda x: f"{100 * x:.1f}")}
    return columns | {"squared difference" if regression else "KL": ("divergence", lambda x: f"{x:.3f}")}


def paired(ways: Mapping[str, Sequence[Mapping[str, Any]]], measures: Mapping[str, str]) -> list[str]:
    """Differences of the first of the `ways` to each other one, on the seeds that both have, at least two.

    `measures`: heading -> key. A seed's teacher and student are the same for all, so these differences may spread less
    than the figures."""
    (name, first), *others = ways.items()
    out = []
    for other, group in others:
        parts = []
        for heading, key in measures.items():
            own, its = ({row["seed"]: row[key] for row in rows if key in row} for rows in (first, group))
            gaps = [(own[seed] - its[seed]) * (1 if key == "divergence" else 100) for seed in own if seed in its]
            if len(gaps) > 1:
                above = f"above in {sum(gap > 0 for gap in gaps)} of {len(gaps)}"
                parts.append(f"{heading} {statistics.fmean(gaps):+.3f} ± {statistics.stdev(gaps):.3f} ({above})")
        if parts:
            out.append(f"- {name} less {other}, seed by seed: {', '.join(parts)}")
    return out
