"""The result of a local sweep: a table of its trials, the Pareto front of quality and energy, and its figure."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from spikeprune.files.atomic import write_json
from spikeprune.integrations.sweeps.local import Driver
from spikeprune.report.figures import front_figure
from spikeprune.report.numbers import columns, digits, energy_unit
from spikeprune.report.results import ENERGY, QUALITY, front
from spikeprune.report.tables import banner


def report(driver: Driver) -> int:
    """Print and draw; returns the exit code, 1 where trials failed."""
    rows, failed = driver.rows(), driver.failures()
    kept = front([(row["results"][ENERGY], row["results"][QUALITY]) for row in rows])
    if rows or failed:
        front_trials = [rows[i]["trial"] for i in kept]
        write_json(driver.folder / "results.json", {"trials": rows, "failed": failed, "front": front_trials})
        print("\n" + trials_table(rows, kept, failed))
    if rows:
        title = f"{driver.sweep.path.stem}: {rows[0]['task']}, preset {rows[0]['preset']}, {len(rows)} trials"
        print(f"\n{front_figure(rows, kept, driver.folder / 'front.svg', title)}")
    if stopped := driver.pruned():
        print(f"{stopped} trials were stopped early")
    if not failed:
        return 0
    many = f"{len(failed)} trial{'s' * (len(failed) > 1)} failed"
    print(f"error: {many}; see {driver.folder}/trials/N.log; the same command tries them again", file=sys.stderr)
    return 1


def trials_table(rows: Sequence[dict[str, Any]], kept: Sequence[int], failed: Sequence[dict[str, Any]] = ()) -> str:
    """One line a trial, cheapest first, `*` for those of the front, those that failed last; plain text."""
    unit, size = energy_unit([row["results"][ENERGY] for row in rows] or [0.0])
    keys = list([*rows, *failed][0]["values"])
    names = [key.removeprefix("stages.") for key in keys]
    lines = [["", "trial", *names, "score", f"E [{unit}]", "× less", "T", "bytes"]]
    for i in sorted(range(len(rows)), key=lambda i: rows[i]["results"][ENERGY]):
        found, teacher = rows[i]["results"], rows[i]["teacher"]
        cells = [_short(rows[i]["values"][key]) for key in keys]
        quality = [f"{100 * found[QUALITY]:.1f}", digits(found[ENERGY] / size)]
        cost = [digits(teacher["energy_pj"] / found[ENERGY]), f"{found['result/t_steps']:.3g}"]
        lines.append(
            ["*" if i in kept else "", str(rows[i]["trial"]), *cells, *quality, *cost, f"{found['result/bytes']:.0f}"]
        )
    for row in failed:
        lines.append(["", str(row["trial"]), *(_short(row["values"][key]) for key in keys), "failed", *"----"])
    notes = [
        *([banner(rows[0]), ""] if rows else []),
        *columns(lines),
        "",
        "*: the Pareto front of score and energy E (per sentence).",
        *(f"trial {row['trial']} failed: {row['why']}" for row in failed),
    ]
    return "\n".join(line for line in notes if line is not None)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
