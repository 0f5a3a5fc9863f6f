"""Numbers and columns as the tables print them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean, stdev

UNITS = (("mJ", 1e9), ("µJ", 1e6), ("nJ", 1e3), ("pJ", 1.0))


def energy_unit(picojoules: Sequence[float]) -> tuple[str, float]:
    """(name, pJ in one) of the largest unit in which the smallest of these energies is at least one."""
    least = min(picojoules)
    return next(((name, size) for name, size in UNITS if least >= size), UNITS[-1])


def si(value: float) -> str:
    """Three digits and k, M, G or T: 12345 → `12.3k`; an int below 1000 as it is."""
    if isinstance(value, int) and abs(value) < 1000:
        return str(value)
    for suffix in ("", "k", "M", "G"):
        if abs(value) < 999.5:
            return f"{digits(value)}{suffix}"
        value /= 1000
    return f"{digits(value)}T"


def digits(value: float) -> str:
    """Three significant digits without an exponent; nothing below a hundredth."""
    places = 0 if value == 0 or abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    return f"{value:.{places}f}"


def spread(values: Sequence[float], form: Callable[[float], str] = "{:.1f}".format) -> str:
    """Their mean ± the standard deviation; the value itself where there is one, `-` where there is none."""
    if not values:
        return "-"
    return f"{form(fmean(values))} ± {form(stdev(values))}" if len(values) > 1 else form(values[0])


def columns(rows: list[list[str]]) -> list[str]:
    """Lines of equal width, a rule below the first."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]
