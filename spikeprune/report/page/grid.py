"""Drawings in cells: a value for each row and column as the depth of a colour."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from spikeprune.report.page.chart import drawing, label, rect, upwards
from spikeprune.report.page.markup import Markup, tag


def cells(
    name: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    *,
    high: float = 1.0,
    write: Callable[[float], str] | None = None,
    tip: Callable[[int, int], str],
    cell: tuple[float, float] = (38, 20),
    left: float = 84,
    slanted: bool = False,
) -> Markup:
    """Rows from above, `values[row][column]`; a missing value is an empty place. `write`: the number in a cell, none
    where it is None. `slanted`: long names of columns are written upwards."""
    width, height = cell
    top = (12 + 7.2 * max(map(len, columns), default=0)) if slanted else (20 if any(columns) else 4)
    drawn: list[object] = []
    for j, column in enumerate(columns):
        x = left + (j + 0.5) * width
        drawn.append(upwards(x + 4, top - 6, column) if slanted else label(x, top - 6, column))
    for i, row in enumerate(rows):
        y = top + i * height
        drawn.append(label(left - 6, y + height / 2 + 4, row, "end"))
        for j, value in enumerate(values[i]):
            if value is not None:
                drawn.append(_cell(left + j * width, y, cell, value, high, write, tip(i, j)))
    longest = max(map(len, values), default=0)
    return drawing(
        name, *drawn, width=max(left + longest * width + 8, 120), height=top + len(rows) * height + 4, fixed=True
    )


def _cell(
    x: float,
    y: float,
    size: tuple[float, float],
    value: float,
    high: float,
    write: Callable[[float], str] | None,
    tip: str,
) -> Markup:
    depth = min(1.0, max(0.0, value / high if high else 0.0))
    box = (x + 0.5, y + 0.5, size[0] - 1, size[1] - 1)
    drawn = [rect(*box, "cell", rx=2), rect(*box, "depth", tip, rx=2, fill_opacity=f"{depth:.3f}")]
    if write is not None:
        shade = "deep" if depth > 0.55 else "pale"
        drawn.append(label(x + size[0] / 2, y + size[1] / 2 + 4, write(value), class_=f"number {shade}"))
    return tag("g", *drawn)
