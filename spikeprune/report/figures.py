"""Two figures of quality against energy: from `summary.json` files, and of the trials of a sweep.

Colours: Okabe & Ito's palette and a grey, which colour-blind readers tell apart. matplotlib is loaded on use. The
suffix of the path (.png, .svg, .pdf) chooses the format.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from statistics import fmean
from typing import Any

from spikeprune.report.numbers import digits, energy_unit
from spikeprune.report.tables import NOT_GLUE

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
INK = "#333333"
LOWEST = 15.0  # points below the teacher that a panel shows


def new_figure(width: float, height: float):
    """A figure drawn without a display and without touching the caller's pyplot state; inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure, path: str | Path) -> Path:
    from matplotlib import rc_context

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # No date, version or random names in the file: the same numbers give the same bytes.
    metadata = {".svg": {"Date": None}, ".png": {"Software": None}, ".pdf": {"CreationDate": None}}.get(path.suffix, {})
    with rc_context({"svg.hashsalt": "spikeprune"}):
        figure.savefig(path, dpi=160, metadata=metadata)
    return path


# ------------------------------------------------------------------------------------------------ quality and energy


def results_figure(summaries: Sequence[Mapping[str, Any]], path: str | Path) -> Path:
    """Main metric in points above the run's own dense teacher, over how many times less energy a sentence takes
    (logarithmic): the uncompressed student, then each later stage; the last one is a star. One panel for each task.

    A colour for each data, preset, kind of weights and budget, the same in all panels. Of several seeds it is their
    mean, with a small star for each.
    """
    tasks = list(dict.fromkeys(summary["task"] for summary in summaries))
    kinds = _kinds(summaries)
    colours = dict(zip(sorted(set(kinds)), cycle(COLOURS), strict=False))
    columns = min(3, len(tasks))
    rows = -(-len(tasks) // columns)
    figure = new_figure(max(7.2, 3.4 * columns), (4.0 if rows == 1 else 2.8 * rows) + 0.1 * len(colours))
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    marks = [
        _panel(axes, task, [pair for pair in zip(kinds, summaries, strict=True) if pair[1]["task"] == task], colours)
        for axes, task in zip(panels, tasks, strict=False)
    ]
    for axes in panels[len(tasks) :]:
        axes.remove()
    for axes in panels[max(0, len(tasks) - columns) : len(tasks)]:
        axes.set_xlabel("times less energy per sentence", color=INK)
    figure.supylabel("points above the dense teacher (dashed)", fontsize=10, color=INK)
    if warnings := _warnings(summaries):
        figure.suptitle("\n".join(warnings), fontsize=10, color=INK)
    for kind, colour in colours.items():
        panels[0].plot([], [], color=colour, marker="o", label=kind)
    figure.legend(loc="outside lower center", ncols=min(columns, len(colours)), frameon=False, fontsize=8.5)
    for axes, own in zip(panels, marks, strict=False):
        _label(figure, axes, own)
    return save_figure(figure, path)


def _panel(
    axes, task: str, summaries: Sequence[tuple[str, Mapping[str, Any]]], colours: Mapping[str, str]
) -> list[tuple[str, float, float]]:
    """Draws one task's summaries, each after its kind; the text and place of each last point. What is more than LOWEST
    points below its teacher is a triangle at the edge."""
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}  # of the same stages, or they have no mean
    for kind, summary in summaries:
        groups.setdefault((kind, *summary["stages"]), []).append(summary)
    marks, everything = [], [(1.0, 0.0)]
    for (kind, *_), group in groups.items():
        colour, tracks = colours[kind], [_track(summary) for summary in group]
        mean = [tuple(map(fmean, zip(*points, strict=True))) for points in zip(*tracks, strict=True)]
        shown = [(less, max(gap, -LOWEST)) for less, gap in mean]
        for track in tracks if len(tracks) > 1 else []:
            axes.scatter(*track[-1], s=60, marker="*", color=colour, alpha=0.5, linewidth=0, zorder=2)
        axes.plot(*zip(*shown, strict=True), color=colour, linewidth=1.8, marker="o", markeredgecolor="white", zorder=3)
        below = shown[-1] != mean[-1]
        marker, size = ("v", 90) if below else ("*", 210)
        axes.scatter(*shown[-1], s=size, marker=marker, color=colour, edgecolor="white", zorder=4)
        marks.append((f"{mean[-1][1]:+.1f}", *shown[-1]))
        everything += [*shown, *((less, max(gap, -LOWEST)) for less, gap in (track[-1] for track in tracks))]
    less, gaps = zip(*everything, strict=True)
    axes.axhline(0, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), alpha=0.6, zorder=1)
    axes.set(xscale="log", xlim=(min(less), max(less) * 2.5), ylim=(min(gaps) - 1.2, max(gaps) + 1.2))
    _plain(axes, (1,) if max(less) > 30 else (1, 2, 5))
    axes.set_title(task, loc="left", fontsize=10, color=INK)
    return marks


def _kinds(summaries: Sequence[Mapping[str, Any]]) -> list[str]:
    """What each is of; residual connections are named where a preset has been run with several."""
    own = [summary.get("student", {}).get("residual", "unknown") for summary in summaries]  # older runs do not say
    residuals: dict[str, set[str]] = {}
    for summary, residual in zip(summaries, own, strict=True):
        residuals.setdefault(summary["preset"], set()).add(residual)
    kinds = []
    for summary, residual in zip(summaries, own, strict=True):
        final, preset = summary["stages"][summary["final"]], summary["preset"]
        parts = [f"{preset} (embedded)" if summary["data"]["source"] == "embedded" else str(preset)]
        parts += [f"residual={residual}"] * (len(residuals[preset]) > 1)
        weights = final.get("encoder_weights", {}).get("kind", "float")
        parts += [f"{weights} weights"] * (weights != "float")
        parts += [f"budget {final['budget']['share']:g}"] if "budget" in final else []
        kinds.append(", ".join(parts))
    return kinds


def _track(summary: Mapping[str, Any]) -> list[tuple[float, float]]:
    """(times less energy, points above the teacher) of each stage from the uncompressed student on."""
    names = list(summary["stages"])
    if summary["uncompressed"] in names:
        names = names[names.index(summary["uncompressed"]) :]
    teacher, rows = summary["teacher"], [summary["stages"][name] for name in names]
    energy = teacher["cost"]["energy_pj"]
    return [(energy / row["cost"]["energy_pj"], 100 * (row["main"] - teacher["main"])) for row in rows]


def _warnings(summaries: Sequence[Mapping[str, Any]]) -> list[str]:
    return sorted({NOT_GLUE for summary in summaries if summary["data"]["source"] == "embedded"})


def _plain(axes, numbers: Sequence[int]) -> None:
    """A logarithmic axis in plain numbers, of each power of ten times `numbers`, and a quiet frame."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#E8E8E8", linewidth=0.7, which="major", zorder=0)
    axes.xaxis.set_major_locator(LogLocator(subs=numbers, numticks=12))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def _label(figure, axes, marks):
    """Writes each text beside its point, at the first of a few places where it covers no text, point or line."""
    figure.canvas.draw()
    points = [axes.transData.transform((x, y)) for _, x, y in marks]
    lines = [line.get_transform().transform_path(line.get_path()) for line in axes.lines if len(line.get_xdata())]
    taken, frame = [], axes.get_window_extent()

    def free(box):
        inside = frame.contains(box.x0, box.y0) and frame.contains(box.x1, box.y1)
        covers = any(box.overlaps(other) for other in taken) or any(box.contains(*point) for point in points)
        return inside and not covers and not any(line.intersects_bbox(box, filled=False) for line in lines)

    for text, x, y in marks:
        for place in _PLACES:
            note = axes.annotate(
                text, (x, y), place[:2], textcoords="offset points", ha=place[2], va="center", fontsize=8.5, color=INK
            )
            box = note.get_window_extent()
            if free(box) or place == _PLACES[-1]:
                taken.append(box)
                break
            note.remove()


# Offsets in points from the mark: right, left, above, below, then further away.
_PLACES = (
    *((10, 0, "left"), (-10, 0, "right"), (0, 13, "center"), (0, -13, "center")),
    *((9, 11, "left"), (9, -11, "left"), (-9, 11, "right"), (-9, -11, "right")),
    *((0, 25, "center"), (0, -25, "center"), (12, 22, "left"), (-12, -22, "right")),
)


# ------------------------------------------------------------------------------------------------ the trials of a sweep


def front_figure(rows: Sequence[Mapping[str, Any]], kept: Sequence[int], path: str | Path, title: str) -> Path:
    """Main metric (×100) over energy per sentence (logarithmic) of a sweep's trials; the front joined and numbered.

    `rows`: as in `integrations/sweeps/report.py`; `kept`: which of them are the front, cheapest first.
    """
    figure = new_figure(7.2, 4.4)
    axes = figure.add_subplot()
    teacher = rows[0]["teacher"]
    unit, size = energy_unit([row["results"]["result/energy_pj"] for row in rows])
    points = [(row["results"]["result/energy_pj"] / size, 100 * row["results"]["result/main"]) for row in rows]
    best = [points[i] for i in kept]
    axes.scatter(*zip(*points, strict=True), s=34, color="#BBBBBB", edgecolor="white", zorder=2, label="trial")
    axes.plot(*zip(*best, strict=True), color=COLOURS[0], marker="o", linewidth=1.4, zorder=3, label="Pareto front")
    axes.axhline(100 * teacher["main"], color=INK, linewidth=0.9, linestyle=(0, (4, 3)), alpha=0.6, zorder=1)
    axes.plot(
        [], [], color=INK, linestyle=(0, (4, 3)), label=f"dense teacher, {digits(teacher['energy_pj'] / size)} {unit}"
    )
    scores = [*(score for _, score in points), 100 * teacher["main"]]
    room = max(1.0, 0.25 * (max(scores) - min(scores)))
    axes.set(xscale="log", ylim=(min(scores) - room, max(scores) + room))
    axes.set_xlabel(f"energy per sentence [{unit}], by cost.model", color=INK)
    axes.set_ylabel("score", color=INK)
    axes.margins(x=0.18)
    low, high = axes.get_xlim()
    _plain(axes, (1, 2, 5) if high < 300 * low else (1,))
    axes.set_title("\n".join([title, *_warnings(rows[:1])]), loc="left", fontsize=10, color=INK)
    axes.legend(frameon=False, fontsize=8.5)
    _label(figure, axes, [(str(rows[i]["trial"]), *points[i]) for i in kept])
    return save_figure(figure, path)
