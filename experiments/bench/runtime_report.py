"""Results of the runtime's benchmark as tables and a figure, and docs/runtime.md's section of them; nothing by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from experiments.bench.report import ROOT
from spikeprune.errors import InputError
from spikeprune.files import jsonfile
from spikeprune.files.atomic import write_json
from spikeprune.report.figures import new_figure, save_figure
from spikeprune.report.markdown import between, table

KEPT, PAGE = Path(__file__).with_name("runtime.json"), ROOT / "docs" / "runtime.md"
FIGURE = ROOT / "docs" / "figures" / "runtime.svg"
GOAL = 75
GOALS = {"dense teacher, onnxruntime float32": 4.0, "dense teacher, onnxruntime int8": 1.0}  # times as fast at 1/GOAL
FLASH = {"1 MB": 2**20, "16 MB": 2**24}


def forms_of(results: dict) -> list[str]:
    return list(results["rows"][0]["facts"])


def fit(results: dict, name: str) -> tuple[float, float]:
    """Milliseconds of the fixed part, and for a million additions: the line through a form's budgets that misses them
    least, relative to each."""
    points = [(row["facts"][name]["additions"] / 1e6, 1e3 * row["seconds"][name]) for row in results["rows"]]
    x, y = np.array(points).T
    slope, fixed = np.polyfit(x, y, 1, w=1 / y)
    return float(fixed), float(slope)


def markdown(results: dict) -> str:
    rows, made, forms = results["rows"], results["made"], forms_of(results)
    additions = [f"{row['facts'][forms[0]]['additions'] / 1e6:.1f}" for row in rows]
    lines = [["additions, 10⁶", *additions, "x", ""]]
    for name in dict.fromkeys([*forms, *rows[0]["seconds"]]):
        lines.append([name, *(f"{1e3 * row['seconds'][name]:.2f}" for row in rows)])
        lines[-1] += [fit_of(results, name), faster(rows, name)] if name in forms else ["", ""]
    named = " / ".join(f"the {other} (goal: at least {least:g})" for other, least in GOALS.items())
    heads = [*(f"1/{row['budget']}" for row in rows), "fit", f"at 1/{GOAL}, × as fast"]
    parts = [
        f"{results['network']}, {results['tokens']} tokens; {made['hardware']}, load average {made['load']:.1f} when "
        f"it began, torch {made['torch']}, commit `{made['commit']}`. Milliseconds, the shortest of each row's calls; "
        f"at 1/{GOAL} how many times as fast as {named}.",
        table(["energy of the dense teacher ×", *heads], lines),
        differing(results["differences"]),
        *stored(results["sizes"]),
    ]
    return "\n\n".join(parts)


def fit_of(results: dict, name: str) -> str:
    return "{:.2f} + {:.3f} x".format(*fit(results, name)) if len(results["rows"]) > 1 else ""


def faster(rows: list[dict], name: str) -> str:
    """`4.1 / 1.7` of a form at the budget GOAL, and whether it misses a goal; nothing where that was not measured."""
    seconds = next((row["seconds"] for row in rows if row["budget"] == GOAL), {})
    if not seconds.keys() >= GOALS.keys():
        return ""
    found = [seconds[other] / seconds[name] for other in GOALS]
    missed = any(ratio < least for ratio, least in zip(found, GOALS.values(), strict=True))
    return " / ".join(f"{ratio:.1f}" for ratio in found) + (", **missed**" if missed else "")


def differing(rows: list[dict]) -> str:
    head = ["Python network of", "precision", "spikes", "differ, whole network", "differ, each layer", "labels agree"]
    lines = [
        [
            row["form"].partition(",")[0],
            row["precision"],
            f"{row['spikes']:,}",
            *(f"{row[part]:,} ({row[part] / row['spikes']:.1g})" for part in ("whole", "each")),
            f"{row['labels']} of {row['sentences']}",
        ]
        for row in rows
    ]
    return table(head, lines)


def stored(sizes: dict) -> Iterator[str]:
    """What fits where, the program included."""
    program = min((found["text"] + found["data"] for found in sizes["program"].values()), default=0)
    lines = []
    for name, found in sizes["networks"].items():
        fits = [size for size, room in FLASH.items() if found["flash"] + program <= room]
        arena = f"{found['arena']:,} ({found['tokens']} tokens)"
        lines.append([name, f"{found['flash']:,}", arena, fits[0] if fits else "more"])
    yield table(["network", "`model.spk`, bytes", "arena, bytes", "fits flash of"], lines)
    if sizes["program"]:
        lines = [[name, f"{found['text']:,}", f"{found['data']:,}"] for name, found in sizes["program"].items()]
        yield table(["the library on Arm (Thumb-2)", "text, bytes", "data, bytes"], lines)


def draw(results: dict, path: Path = FIGURE) -> None:
    """Time against additions, both logarithmic, with each form's fit."""
    figure = new_figure(6.4, 4.2)
    axes = figure.add_subplot()
    for place, name in enumerate(forms_of(results)):
        x = np.array([row["facts"][name]["additions"] / 1e6 for row in results["rows"]])
        y = [1e3 * row["seconds"][name] for row in results["rows"]]
        fixed, slope = fit(results, name)
        dense_x = np.geomspace(x.min(), x.max(), 50)
        axes.plot(x, y, "o", color=f"C{place}", markersize=4)
        axes.plot(dense_x, fixed + slope * dense_x, color=f"C{place}", linewidth=1, label=name)
    for style, name in zip(("--", ":"), GOALS, strict=True):
        times = [1e3 * row["seconds"][name] for row in results["rows"] if name in row["seconds"]]
        if times:
            axes.axhline(np.median(times), color="#8A8A8A", linestyle=style, linewidth=1, label=name)
    axes.set(xscale="log", yscale="log", xlabel="additions of a sentence, 10⁶", ylabel="milliseconds")
    axes.legend(fontsize=7, frameon=False)
    save_figure(figure, path)


def page_with(page: str, results: dict) -> str:
    return between(page, "runtime", markdown(results))


def keep(path: Path) -> None:
    """Raises InputError for a run of no commit, or that has not measured all budgets that it was asked for."""
    results = jsonfile.read(path, "measure again", ["made", "budgets", "rows"])
    jsonfile.refuse_changed_tree(results["made"]["commit"], str(path))
    measured = [row["budget"] for row in results["rows"]]
    missing = ", ".join(f"1/{budget}" for budget in results["budgets"] if budget not in measured)
    if missing:
        raise InputError(f"{path}: was cut short before its budgets {missing}: measure again")
    write_json(KEPT, results)
    PAGE.write_text(page_with(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")
    draw(results)
