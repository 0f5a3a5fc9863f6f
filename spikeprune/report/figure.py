"""Two pictures: quality against energy from `summary.json` files, and the stages of a run as a drawing.

Colours: Okabe & Ito's palette, which colour-blind readers tell apart. matplotlib is loaded on use. The suffix of the
path (.png, .svg, .pdf) chooses the format.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spikeprune.report.table import NOT_GLUE, digits, energy_unit

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
INK = "#333333"


def _figure(width: float, height: float):
    """A figure drawn without a display and without touching the caller's pyplot state; inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure, path: str | Path) -> Path:
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
    """Main metric (×100) over energy per sentence (logarithmic): dense teacher, uncompressed student, later stages.

    One colour for each summary; stages before the uncompressed student are left out. Embedded data are named as such.
    """
    figure = _figure(7.2, 4.4)
    axes = figure.add_subplot()
    tracks = [_track(summary) for summary in summaries]
    unit, size = energy_unit([energy for track in tracks for _, energy, _ in track])
    marks = []
    for summary, track, colour in zip(summaries, tracks, _cycle(len(tracks)), strict=True):
        names, energies, scores = zip(*((name, energy / size, score) for name, energy, score in track), strict=True)
        axes.plot(energies[1:], scores[1:], color=colour, linewidth=1.4, zorder=2)
        axes.axhline(scores[0], color=colour, linewidth=0.9, linestyle=(0, (4, 3)), alpha=0.6, zorder=1)
        label = f"{summary['task']}, preset {summary['preset']}, seed {summary['seed']}"
        for i, (name, energy, score) in enumerate(zip(names, energies, scores, strict=True)):
            style = "D" if i == 0 else "*" if name == summary["final"] else "o"
            axes.scatter(
                energy, score, s=190 if style == "*" else 52, marker=style, color=colour, edgecolor="white", zorder=3
            )
            less = "" if i == 0 else f"  ÷{digits(energies[0] / energy)}"
            marks.append(
                (
                    f"{name}{less}" if len(tracks) == 1 or name in ("dense teacher", summary["final"]) else "",
                    energy,
                    score,
                )
            )
        axes.plot([], [], color=colour, marker="o", label=label)
    _dress(axes, summaries, unit, tracks)
    _label(figure, axes, marks)
    return _save(figure, path)


def _track(summary: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """(name, pJ, score) of the teacher, then of each stage from the uncompressed student on."""
    names = list(summary["stages"])
    if summary["uncompressed"] in names:
        names = names[names.index(summary["uncompressed"]) :]
    rows = [("dense teacher", summary["teacher"]), *((name, summary["stages"][name]) for name in names)]
    return [(name, row["cost"]["energy_pj"], 100 * row["main"]) for name, row in rows]


def _cycle(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]


def _dress(axes, summaries, unit, tracks):
    from matplotlib.ticker import LogLocator, NullFormatter

    scores = [score for track in tracks for _, _, score in track]
    room = max(1.0, 0.25 * (max(scores) - min(scores)))
    axes.set(xscale="log", ylim=(min(scores) - room, max(scores) + room))
    axes.set_xlabel(f"energy per sentence [{unit}], additions and multiply-accumulates", color=INK)
    axes.set_ylabel("score", color=INK)
    axes.margins(x=0.18)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#E8E8E8", linewidth=0.7, which="major", zorder=0)
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,), numticks=12))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    warnings = {NOT_GLUE for summary in summaries if summary["data"]["source"] == "embedded"}
    title = f"{summaries[0]['task']}, preset {summaries[0]['preset']}" if len(summaries) == 1 else "Quality and energy"
    axes.set_title("\n".join([title, *sorted(warnings)]), loc="left", fontsize=10, color=INK)
    if len(summaries) > 1:
        axes.legend(frameon=False, fontsize=8.5)


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

    `rows`: as in `sweeps/report.py`; `kept`: which of them are the front, cheapest first.
    """
    figure = _figure(7.2, 4.4)
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
    track = [("", *point) for point in [*points, (points[0][0], 100 * teacher["main"])]]
    _dress(axes, rows[:1], unit, [track])
    axes.set_title("\n".join([title, *axes.get_title(loc="left").splitlines()[1:]]), loc="left", fontsize=10, color=INK)
    axes.legend(frameon=False, fontsize=8.5)
    _label(figure, axes, [(str(rows[i]["trial"]), *points[i]) for i in kept])
    return _save(figure, path)


# ------------------------------------------------------------------------------------------------ the stages, drawn

ROWS, STEPS = 8, 4  # neurons and time steps of the little rasters
_ALL = (STEPS,) * ROWS
_HALF = tuple(STEPS if row in (0, 2, 5, 6) else 0 for row in range(ROWS))
_SHORT = tuple({0: 2, 2: 1, 5: 2, 6: 1}.get(row, 0) for row in range(ROWS))
_SPIKES = {(0, 1), (1, 2), (2, 0), (2, 3), (3, 1), (4, 0), (4, 3), (5, 1), (6, 0), (6, 2), (7, 3)}
STAGES = (
    ("teacher", "fine-tune BERT\non the task", "dense BERT", None),
    ("internal_kd", "copy hidden states\nand attention", "spiking student", _ALL),
    ("prediction_kd", "copy the softened\nanswers", "uncompressed student", _ALL),
    ("spatial", "remove heads\nand neurons", "masks", _HALF),
    ("temporal", "remove time steps,\nlayer by layer", "t_steps", _SHORT),
    ("finetune", "recover what\nwas lost", "compressed student", _SHORT),
)


def pipeline_figure(path: str | Path) -> Path:
    """The stages from teacher to compressed student: what each does, what it leaves, and the spikes that remain.

    Each raster shows neurons (rows) over time steps (columns); a pale outline is what has been removed.
    """
    from matplotlib.patches import FancyBboxPatch

    figure = _figure(11.0, 3.5)
    axes = figure.add_subplot()
    axes.set(xlim=(-0.1, 6 * 1.8 - 0.2), ylim=(0, 3.6), aspect="equal")
    axes.axis("off")
    for i, (name, does, leaves, kept) in enumerate(STAGES):
        left, colour = 1.8 * i, INK if i == 0 else COLOURS[0] if i < 3 else COLOURS[1]
        box = FancyBboxPatch(
            (left, 0.72),
            1.5,
            2.4,
            boxstyle="round,pad=0,rounding_size=0.09",
            fill=False,
            edgecolor=colour,
            linewidth=1.3,
        )
        axes.add_patch(box)
        centre = left + 0.75
        axes.text(centre, 2.9, name, ha="center", va="center", fontsize=10.5, weight="bold", color=colour)
        axes.text(centre, 2.5, does, ha="center", va="center", fontsize=8.5, color=INK)
        axes.text(centre, 0.5, f"→ {leaves}", ha="center", va="center", fontsize=8.5, style="italic", color=INK)
        _activations(axes, left + 0.45, colour) if kept is None else _raster(axes, left + 0.35, colour, kept)
        if i:
            arrow = {"arrowstyle": "-|>", "color": INK, "linewidth": 1.3, "mutation_scale": 11}
            axes.annotate("", (left, 1.92), (left - 0.3, 1.92), arrowprops=arrow)
    for start, end, text, colour in ((1, 3, "distil", COLOURS[0]), (3, 6, "compress", COLOURS[1])):
        axes.plot([1.8 * start, 1.8 * end - 0.3], [3.28, 3.28], color=colour, linewidth=1.3)
        axes.text(0.9 * (start + end) - 0.15, 3.42, text, ha="center", va="center", fontsize=9.5, color=colour)
    legend = (
        "→ what a stage leaves.   Rasters: neurons (rows) over time steps (columns); filled: a spike; pale: removed."
    )
    axes.text(5.25, 0.12, legend, ha="center", va="center", fontsize=8, color="#777777")
    return _save(figure, path)


def _activations(axes, left, colour):
    """Real values, one a neuron, as bars."""
    for row, value in enumerate((0.35, 0.8, 0.15, 0.55, 0.95, 0.25, 0.7, 0.45)):
        axes.add_patch(_rectangle(left, 0.9 + 0.155 * row, 0.6 * value, 0.1, color=colour, linewidth=0))


def _raster(axes, left, colour, kept):
    """Spikes (filled) in the first `kept[row]` steps of each row, pale outlines where steps were removed."""
    for row in range(ROWS):
        for step in range(STEPS):
            spike, alive = (row, step) in _SPIKES, step < kept[row]
            edge, face = (colour, colour if spike else "none") if alive else ("#DDDDDD", "none")
            place = left + 0.21 * step, 0.9 + 0.155 * row
            axes.add_patch(_rectangle(*place, 0.16, 0.1, edgecolor=edge, facecolor=face, linewidth=0.7))


def _rectangle(x, y, width, height, **style):
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), width, height, **style)
