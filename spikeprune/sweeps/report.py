"""What a local sweep ends with: a table of its trials, the Pareto front of quality and energy, and a figure of it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from spikeprune.report.figure import front_figure
from spikeprune.report.results import ENERGY, QUALITY, front
from spikeprune.report.table import banner, columns, digits, energy_unit
from spikeprune.rundir import write_json
from spikeprune.sweeps.local import Driver


def report(driver: Driver) -> int:
    """Print and draw; returns the exit code, 1 where trials failed."""
    rows = driver.rows()
    if rows:
        kept = front([(row["results"][ENERGY], row["results"][QUALITY]) for row in rows])
        write_json(driver.folder / "results.json", {"trials": rows, "front": [rows[i]["trial"] for i in kept]})
        title = f"{driver.sweep.path.stem}: {rows[0]['task']}, preset {rows[0]['preset']}, {len(rows)} trials"
        figure = front_figure(rows, kept, driver.folder / "front.svg", title)
        print("\n" + trials_table(rows, kept) + f"\n\n{figure}")
    if stopped := driver.pruned():
        print(f"{stopped} trials were stopped early")
    if not driver.failed:
        return 0
    many = f"{len(driver.failed)} trial{'s' * (len(driver.failed) > 1)} failed"
    print(f"error: {many}; the same command tries again: {driver.folder}/trials/N.log says why", file=sys.stderr)
    return 1


def trials_table(rows: Sequence[dict[str, Any]], kept: Sequence[int]) -> str:
    """One line a trial, cheapest first, `*` for those of the front; plain text."""
    unit, size = energy_unit([row["results"][ENERGY] for row in rows])
    keys = list(rows[0]["values"])
    head = [
        "",
        "trial",
        *(key.removeprefix("compress.") for key in keys),
        "score",
        f"E [{unit}]",
        "× less",
        "T",
        "bytes",
    ]
    lines = []
    for i in sorted(range(len(rows)), key=lambda i: rows[i]["results"][ENERGY]):
        found, teacher = rows[i]["results"], rows[i]["teacher"]
        cells = [_short(rows[i]["values"][key]) for key in keys]
        quality = [f"{100 * found[QUALITY]:.1f}", digits(found[ENERGY] / size)]
        cost = [digits(teacher["energy_pj"] / found[ENERGY]), f"{found['result/t_steps']:.3g}"]
        lines.append(
            ["*" if i in kept else "", str(rows[i]["trial"]), *cells, *quality, *cost, f"{found['result/bytes']:.0f}"]
        )
    notes = [
        banner(rows[0]),
        "",
        *columns([head, *lines]),
        "",
        "*: the Pareto front of score and energy E (per sentence).",
    ]
    return "\n".join(line for line in notes if line is not None)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
