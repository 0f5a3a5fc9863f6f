"""Drawings on axes: lines, points and bars. Sizes are in units of a drawing 320 wide, which a page shows no smaller, so
that letters of 11 units stay readable."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from spikeprune.report.page.markup import Markup, joined, tag
from spikeprune.report.page.scale import Scale, fitted, short

WIDTH, HEIGHT = 320, 212
LEFT, RIGHT, TOP, BOTTOM = 44, 312, 26, 172


class Series(NamedTuple):
    name: str
    colour: str  # a class of `style.py`
    points: Sequence[tuple[float, float]]


def drawing(name: str, *parts: object, width: float = WIDTH, height: float = HEIGHT, fixed: bool = False) -> Markup:
    """An SVG that fills its place, or a `fixed` one of its own size; `name` is read aloud."""
    size = {"width": f"{width:g}", "height": f"{height:g}"} if fixed else {}
    return tag("svg", *parts, viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=name, **size)


def label(x: float, y: float, text: object, anchor: str = "middle", **more: object) -> Markup:
    return tag("text", text, x=f"{x:g}", y=f"{y:g}", text_anchor=anchor, **more)


def upwards(x: float, y: float, text: str) -> Markup:
    """A label that is read from below."""
    return label(x, y, text, "start", transform=f"rotate(-90 {x:g} {y:g})")


def circle(x: float, y: float, radius: float, style: str, tip: str, **more: object) -> Markup:
    """`style`: classes of `style.py`; `tip`: what a pointer shows."""
    return tag("circle", cx=f"{x:g}", cy=f"{y:g}", r=f"{radius:.3g}", class_=style, data_tip=tip, **more)


def rect(x: float, y: float, width: float, height: float, style: str, tip: str | None = None, **more: object) -> Markup:
    size = {"width": f"{width:g}", "height": f"{height:g}"}
    return tag("rect", x=f"{x:g}", y=f"{y:g}", **size, class_=style, data_tip=tip, **more)


def axes(x: Scale, y: Scale, x_name: str, y_name: str, write: Callable[[float], str] = short) -> Markup:
    """Grid, ticks and names of both axes."""
    parts: list[object] = []
    for value in y.ticks():
        at = y(value)
        parts.append(tag("line", x1=LEFT, x2=RIGHT, y1=at, y2=at, class_="grid"))
        parts.append(label(LEFT - 6, at + 4, write(value), "end"))
    for value in x.ticks():
        parts.append(label(x(value), BOTTOM + 16, short(value)))
    parts.append(tag("line", x1=LEFT, x2=RIGHT, y1=BOTTOM, y2=BOTTOM, class_="axis"))
    parts.append(label((LEFT + RIGHT) / 2, HEIGHT - 8, x_name, class_="name"))
    parts.append(label(2, 12, y_name, "start", class_="name"))
    return joined(parts)


def path(points: Iterable[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points)


def line(series: Series, x: Scale, y: Scale, write: Callable[[float], str]) -> Markup:
    """A line with a mark at each point, which tells its numbers."""
    places = [(x(a), y(b)) for a, b in series.points]
    radius = 2.4 if len(places) <= 40 else 1.2
    tips = (f"{series.name}: {write(b)} at {a:g}" for a, b in series.points)
    marks = [circle(*place, radius, f"{series.colour} mark", tip) for place, tip in zip(places, tips, strict=True)]
    return joined([tag("path", d=path(places), class_=f"{series.colour} line"), *marks])


def lines(
    name: str,
    series: Sequence[Series],
    *,
    x_name: str,
    y_name: str,
    bands: Sequence[tuple[str, float, float]] = (),
    log: bool = False,
    zero: bool = False,
    write: Callable[[float], str] = short,
) -> Markup:
    """Lines over a common axis; `bands`: (name, begin, end), every second one shaded."""
    points = [point for one in series for point in one.points]
    x_values = [a for a, _ in points] + [edge for _, *edges in bands for edge in edges]
    x = Scale(min(x_values), max(x_values) if max(x_values) > min(x_values) else min(x_values) + 1, LEFT + 4, RIGHT - 4)
    y = fitted((b for _, b in points), BOTTOM, TOP, log=log, zero=zero)
    shades = [
        rect(x(begin), TOP, x(end) - x(begin), BOTTOM - TOP, "band" if i % 2 else "noband", band)
        for i, (band, begin, end) in enumerate(bands)
    ]
    return drawing(name, *shades, axes(x, y, x_name, y_name, write), *(line(one, x, y, write) for one in series))


def stacked(
    name: str, rows: Sequence[str], parts: Sequence[tuple[str, str, Sequence[float]]], *, write: Callable[[float], str]
) -> Markup:
    """A horizontal bar for each row, of `parts`: (name, colour, a value for each row)."""
    totals = [sum(values) for values in zip(*(part[2] for part in parts), strict=True)]
    top, step = 6, 22
    scale = Scale(0, max(totals) or 1, 92, 262)
    drawn: list[object] = []
    for i, row in enumerate(rows):
        y, at = top + i * step, 0.0
        drawn.append(label(86, y + 13, row, "end"))
        for part, colour, values in parts:
            if values[i]:
                width = max(0.5, scale(at + values[i]) - scale(at))
                drawn.append(rect(scale(at), y, width, 15, f"{colour} area", f"{row}, {part}: {write(values[i])}"))
                at += values[i]
        drawn.append(label(scale(at) + 5, y + 13, write(totals[i]), "start"))
    return drawing(name, *drawn, height=top + step * len(rows) + 4)
