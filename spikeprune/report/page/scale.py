"""Axes: where a value lies in a drawing, round numbers for its ticks, and how numbers are written."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """Values from `low` to `high` lie between `begin` and `end` units of the drawing."""

    low: float
    high: float
    begin: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = (math.log(x) for x in (self.low, self.high)) if self.log else (self.low, self.high)
        value = math.log(max(value, self.low)) if self.log else value
        return round(self.begin + (value - low) / (high - low) * (self.end - self.begin), 2)

    def ticks(self) -> list[float]:
        return log_ticks(self.low, self.high) if self.log else ticks(self.low, self.high)


def fitted(values: Iterable[float], begin: float, end: float, *, log: bool = False, zero: bool = False) -> Scale:
    """A scale with room around the values; `zero`: it begins at 0."""
    found = [value for value in values if math.isfinite(value) and (value > 0 or not log)] or [1.0]
    low, high = min(found), max(found)
    if log:
        room = 1.15 if high / low > 1.4 else 1.5
        return Scale(low / room, high * room, begin, end, log=True)
    low = min(low, 0.0) if zero else low
    room = (high - low) * 0.07 or abs(high) * 0.1 or 1.0
    return Scale(low if zero and low == 0 else low - room, high + room, begin, end)


def ticks(low: float, high: float) -> list[float]:
    """About four round numbers from low to high: steps of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    found = []
    while (value := (first + len(found)) * step) <= high + step * 1e-9:
        found.append(round(value, 10))
    return found


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, with their doubles and fivefolds where there are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1,) if high / low > 3000 else (1, 3) if high / low > 60 else (1, 2, 5)
    found = [10.0**power * factor for power in powers for factor in factors]
    return [value for value in found if low <= value <= high]


def short(value: float) -> str:
    """A tick's number: 5e-4, 0.05, 12, 3.5k, 2M."""
    if 0 < abs(value) < 1e-3:
        digits, _, power = f"{value:.0e}".partition("e")
        return f"{digits}e{int(power)}"
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{suffix}"
    return f"{value:.4g}"
