"""Several runs side by side: a table, and the Pareto front of score and energy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from spikeprune.report.numbers import digits, energy_unit, si
from spikeprune.report.page.chart import BOTTOM, LEFT, RIGHT, TOP, axes, circle, drawing, label, path
from spikeprune.report.page.markup import Markup, figure, figures, keys, note, section, table, tag
from spikeprune.report.page.scale import Scale, fitted
from spikeprune.report.page.stages import final, title
from spikeprune.report.results import front

Run = Mapping[str, Any]


def comparison(runs: Sequence[Run]) -> Markup:
    """Of the runs that have a finished student, under the numbers that head their parts of the page."""
    done = [(number, run, final(run)[1]) for number, run in enumerate(runs, 1) if final(run) is not None]
    if not done:
        return section("The runs side by side", note("No run has a finished student yet."))
    unit, size = energy_unit([record["cost"]["energy_pj"] for *_, record in done])
    points = [(record["cost"]["energy_pj"] / size, 100 * record["main"]) for *_, record in done]
    best = front(points)
    head = ["", "run", "on the front", "score", "of the teacher", f"energy [{unit}]", "× less"]
    head += ["T", "heads", "neurons", "bytes"]
    rows = [_row(number, run, record, size, i in best) for i, (number, run, record) in enumerate(done)]
    names = [f"{number} · {title(run)}" for number, run, _ in done]
    shown = _front(points, best, names, [number for number, *_ in done], unit)
    tasks = {run["task"] for _, run, _ in done}
    mixed = f" These are {len(tasks)} tasks, whose scores do not compare." if len(tasks) > 1 else ""
    lead = f"On the front is a run that no other one beats in score and energy at once.{mixed}"
    return section("The runs side by side", figures(shown), table(head, rows, words=3), lead=lead)


def _row(number: int, run: Run, record: Run, size: float, on_front: bool) -> list[str]:
    teacher, cost = run["records"]["teacher"], record["cost"]
    row = [str(number), run["name"], "yes" if on_front else ""]
    row += [f"{100 * one['main']:.1f}" for one in (record, teacher)]
    row += [digits(cost["energy_pj"] / size), digits(teacher["cost"]["energy_pj"] / cost["energy_pj"])]
    row += [f"{fmean(record['t_steps']):.3g}", str(sum(record["heads"])), str(sum(record["ffn"]))]
    return [*row, si(cost["bytes"])]


def _front(
    points: Sequence[tuple[float, float]], best: Sequence[int], names: Sequence[str], numbers: Sequence[int], unit: str
) -> Markup:
    energies, scores = zip(*points, strict=True)
    x = fitted(energies, LEFT + 10, RIGHT - 10, log=max(energies) > 3 * min(energies))
    y: Scale = fitted(scores, BOTTOM, TOP + 8)
    parts: list[object] = [axes(x, y, f"energy of a sentence [{unit}]", "score")]
    if len(best) > 1:
        parts.append(tag("path", d=path((x(points[i][0]), y(points[i][1])) for i in best), class_="c1 line"))
    for i, (energy, score) in enumerate(points):
        tip = f"{names[i]}: {score:.1f} at {digits(energy)} {unit}"
        colour = "c1" if i in best else "c7"
        parts.append(circle(x(energy), y(score), 4.5, f"{colour} area", tip))
        parts.append(label(x(energy), y(score) - 8, numbers[i]))
    return figure("Score and energy", drawing("Pareto front", *parts), keys((("on the front", "c1"), ("beaten", "c7"))))
