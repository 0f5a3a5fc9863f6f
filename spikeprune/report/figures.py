"""Two pictures: quality against energy from `summary.json` files, and the stages of a run as a drawing.

Colours: Okabe & Ito's palette, which colour-blind readers tell apart. matplotlib is loaded on use. The suffix of the
path (.png, .svg, .pdf) chooses the format.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from spikeprune.report.tables import NOT_GLUE, digits, energy_unit

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
    """Main metric in points above the run's own dense teacher, over how many times less energy a sentence takes
    (logarithmic): the uncompressed student, then each later stage; the last one is a star.

    A colour for each task, data, preset and kind of weights. Of several seeds it is their mean, with a small star for
    each.
    """
    figure = _figure(7.2, 4.4)
    axes = figure.add_subplot()
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}  # of the same stages, or they have no mean
    for summary in summaries:
        groups.setdefault((_kind(summary), *summary["stages"]), []).append(summary)
    marks, everything = [], []
    for ((label, *_), group), colour in zip(groups.items(), _cycle(len(groups)), strict=True):
        tracks = [_track(summary) for summary in group]
        mean = [tuple(map(fmean, zip(*points, strict=True))) for points in zip(*tracks, strict=True)]
        for track in tracks if len(tracks) > 1 else []:
            axes.scatter(*track[-1], s=60, marker="*", color=colour, alpha=0.5, linewidth=0, zorder=2)
        axes.plot(*zip(*mean, strict=True), color=colour, linewidth=1.8, marker="o", markeredgecolor="white", zorder=3)
        axes.scatter(*mean[-1], s=210, marker="*", color=colour, edgecolor="white", zorder=4)
        seeds = f", {len(group)} seeds" if len(group) > 1 else ""
        axes.plot([], [], color=colour, marker="o", label=f"{label}{seeds}")
        marks.append((f"÷{mean[-1][0]:.3g}  {mean[-1][1]:+.1f}", *mean[-1]))
        everything += [*mean, *(track[-1] for track in tracks)]
    less, gaps = zip(*everything, strict=True)
    axes.axhline(0, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), alpha=0.6, zorder=1, label="dense teacher")
    axes.set(xscale="log", xlim=(min(less) / 1.5, max(less) * 1.7), ylim=(min(*gaps, 0) - 0.7, max(*gaps, 0) + 0.9))
    axes.set_xlabel("times less energy per sentence than the dense teacher", color=INK)
    axes.set_ylabel("points above the teacher", color=INK)
    _plain(axes, (1, 2, 5))
    axes.set_title("\n".join(["Quality and energy", *_warnings(summaries)]), loc="left", fontsize=10, color=INK)
    axes.legend(frameon=False, fontsize=8.5)
    _label(figure, axes, marks)
    return _save(figure, path)


def _kind(summary: Mapping[str, Any]) -> str:
    weights = summary["stages"][summary["final"]].get("encoder_weights", {}).get("kind", "float")
    few_bits = "" if weights == "float" else f", {weights} weights"
    generated = " (embedded)" if summary["data"]["source"] == "embedded" else ""
    return f"{summary['task']}{generated}, preset {summary['preset']}{few_bits}"


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


def _cycle(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]


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
    scores = [*(score for _, score in points), 100 * teacher["main"]]
    room = max(1.0, 0.25 * (max(scores) - min(scores)))
    axes.set(xscale="log", ylim=(min(scores) - room, max(scores) + room))
    axes.set_xlabel(f"energy per sentence [{unit}], additions and multiply-accumulates", color=INK)
    axes.set_ylabel("score", color=INK)
    axes.margins(x=0.18)
    low, high = axes.get_xlim()
    _plain(axes, (1, 2, 5) if high < 300 * low else (1,))
    axes.set_title("\n".join([title, *_warnings(rows[:1])]), loc="left", fontsize=10, color=INK)
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
