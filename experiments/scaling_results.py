"""The tables of scaling over several devices, from what `bench_ddp.py` has measured; part of `results.py`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

from kept_results import kept_in

from spikeprune.files import jsonfile
from spikeprune.files.atomic import write_json
from spikeprune.report.markdown import table

SCALING = Path(__file__).resolve().parent / "results" / "scaling"
NONE_YET = "No measurement of the present version has been kept yet."
GOAL = 0.85  # of weak scaling: sentences per second over the number of devices times those of one
COLUMNS = ("network", "scaling", "devices × sentences", "steps, sentences/s", "÷ devices × one")
COLUMNS += ("epoch, sentences/s", "÷ devices × one", "communication", "waiting for data", "pruning decision, s")
LEGEND = (
    "Steps: of batches that lie on the device. Epoch: the same steps from the loader, its order and the transfers "
    "included. Communication: the share of the steps' time that is saved when gradients are not averaged, packing "
    "included. Waiting for data: the share of the epoch's time that is saved when the batches lie on the device. "
    "Medians of the measured epochs, of each the slowest process' time. A decision of spatial pruning (`fisher`, 16 "
    "batches of 32) gave {masks} on all processes."
)
JUDGED = ("within one device's interval", "optimizer steps", "heads, neurons kept", "T")
RUNS = ("devices", "killed in", "score", *JUDGED, "additions of a sentence, ÷ one device", "seconds")
RUNS_LEGEND = (
    "All runs have the same batches, in all. The interval: a bootstrap over the dev examples, of the first run. At the "
    "end of each stage a run compares masks, time steps, weights and all else that its processes "
    "hold, and stops where they differ; operations are summed over them."
)
Row = dict[str, Any]


def tables(found: Sequence[dict[str, Any]]) -> str:
    """A table for each measurement, with hardware and commit."""
    return "\n\n".join(of_runs(one) if "runs" in one else of_speed(one) for one in found) or NONE_YET


def of_runs(found: dict[str, Any]) -> str:
    """Short runs on one device and on several, undisturbed and killed, beside the first."""
    made, runs = found["made"], found["runs"]
    one = runs[0]
    head = (
        f"{made_on(made)}; {one['task']}, preset {one['preset']}, data {one['data']}; {made['seconds']:.0f} s in all."
    )
    return f"{head}\n\n{table(RUNS, [run_cells(run, one) for run in runs])}\n\n{RUNS_LEGEND}"


def made_on(made: dict[str, Any]) -> str:
    return f"{made['hardware']}, torch {made['torch']}, commit `{made['commit']}`"


def unequal(run: Row, one: Row) -> list[str]:
    """Those of JUDGED that are not as on one device."""
    low, high = one["interval"]
    of_units = kept(run) == kept(one)
    equal = (low <= run["score"] <= high, run["steps"] == one["steps"], of_units, run["t_steps"] == one["t_steps"])
    return [name for name, same in zip(JUDGED, equal, strict=True) if not same]


def run_cells(run: Row, one: Row) -> list[str]:
    apart, (low, high) = unequal(run, one), one["interval"]
    within = f"{100 * low:.1f}–{100 * high:.1f}: {'no' if JUDGED[0] in apart else 'yes'}"
    steps, t_steps = str(sum(run["steps"].values())), " ".join(map(str, run["t_steps"]))
    judged = zip(JUDGED, (within, steps, kept(run), t_steps), strict=True)
    return [
        str(run["devices"]),
        run["killed"] or "-",
        f"{run['metric']} {100 * run['score']:.1f}",
        *(f"**{text}**" if name in apart else text for name, text in judged),
        f"{run['ac'] / one['ac']:.3f}",
        f"{run['seconds']:.0f}",
    ]


def kept(run: Row) -> str:
    return f"{sum(run['heads'])}, {sum(run['ffn'])}"


def of_speed(found: dict[str, Any]) -> str:
    made, rows = found["made"], sorted(found["rows"], key=lambda row: (row["size"], row["scaling"] == "strong"))
    lines = [line for _, group in groupby(rows, lambda row: (row["size"], row["scaling"])) for line in cells([*group])]
    masks = "the same masks" if all(row["decision"]["same"] for row in rows) else "**different masks**"
    head = f"{made_on(made)}; {made['rounds']} × {made['steps']} steps of each kind; {made['seconds']:.0f} s in all."
    return f"{head}\n\n{table(COLUMNS, lines)}\n\n{LEGEND.format(masks=masks)}"


def cells(rows: list[Row]) -> list[list[str]]:
    """The lines of one size and kind of scaling; the row of one device is what the others are compared with."""
    one = next(row for row in rows if row["devices"] == 1)
    return [
        [
            row["size"],
            row["scaling"],
            f"{row['devices']} × {row['batch'] / row['devices']:g}",
            f"{speed(row, 'ready'):,.0f}",
            efficiency(row, one, "ready"),
            f"{speed(row, 'loaded'):,.0f}",
            efficiency(row, one, "loaded"),
            saved(row, "ready", "unsent") if row["devices"] > 1 else "-",
            saved(row, "loaded", "ready"),
            f"{row['decision']['seconds']:.2f}",
        ]
        for row in sorted(rows, key=lambda row: row["devices"])
    ]


def speed(row: Row, mode: str) -> float:
    """Sentences per second."""
    return row["sentences"] / median(row["seconds"][mode])


def efficiency(row: Row, one: Row, mode: str) -> str:
    """Speed over that of as many single devices, with the goal where there is one."""
    share = speed(row, mode) / speed(one, mode) / row["devices"]
    goal = f" (at least {GOAL}: {'met' if share >= GOAL else 'missed'})"
    return f"{share:.2f}{goal if row['scaling'] == 'weak' and row['devices'] > 1 else ''}"


def saved(row: Row, whole: str, part: str) -> str:
    """The share of the time of epochs `whole` that those of `part` save, at least 0: chance may turn it round."""
    return f"{max(0.0, 100 * (1 - median(row['seconds'][part]) / median(row['seconds'][whole]))):.0f} %"


def keep(file: Path) -> Path:
    """Keep a measurement under its kind, numbers of devices and sizes. Raises InputError for one of no commit."""
    found = jsonfile.read(file, "measure again", ("made",))
    made = found["made"]
    jsonfile.refuse_changed_tree(made["commit"], str(file))
    sizes = ["runs"] if "runs" in found else dict.fromkeys(row["size"].split()[0].lower() for row in found["rows"])
    place = SCALING / f"{'-'.join([made['device'], *map(str, made['devices']), *sizes])}.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    write_json(place, found)
    return place


def kept_tables() -> str:
    return tables(list(kept_in(SCALING).values()))
