"""The predictions on the dev split: confusion or scatter, scores by class, calibration, the largest errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spikeprune.report.page.chart import BOTTOM, LEFT, RIGHT, TOP, axes, circle, drawing
from spikeprune.report.page.grid import cells
from spikeprune.report.page.markup import Markup, figure, figures, joined, keys, note, section, table, tag
from spikeprune.report.page.scale import Scale, fitted

Found = Mapping[str, Any]
LONGEST = 300  # letters of a sentence in a table


def predictions(run: Mapping[str, Any]) -> Markup:
    found = run["predictions"]
    if "missing" in found:
        return section("Predictions", note(found["missing"]))
    labels = found["labels"]
    lead = f"Of the final student on the split {found['split']}, beside the dense teacher."
    if labels is None:
        shown = figures(_scatter("student", found["student"]), _scatter("teacher", found["teacher"]))
        return section("Predictions", shown, worst(found["worst"], None), lead=lead)
    shown = figures(
        _confusion("student", found["student"], labels),
        _confusion("teacher", found["teacher"], labels),
        _reliability(found),
    )
    return section("Predictions", shown, _classes(found, labels), worst(found["worst"], labels), lead=lead)


def _confusion(who: str, found: Found, labels: Sequence[str]) -> Markup:
    rows = found["confusion"]
    sums = [max(1, sum(row)) for row in rows]
    shares = [[n / total for n in row] for row, total in zip(rows, sums, strict=True)]

    def tip(i: int, j: int) -> str:
        return f"true {labels[i]}, predicted {labels[j]}: {rows[i][j]}, {100 * shares[i][j]:.1f} % of {labels[i]}"

    names = [cut(label) for label in labels]
    left = 16 + 6.6 * max(map(len, names))
    width = max(36, min(86, (318 - left) / len(labels)))
    counts = iter([n for row in rows for n in row])
    how = {"cell": (width, 34), "left": left, "slanted": 7 * max(map(len, names)) > width + 12}
    drawn = cells("Confusion", names, names, shares, tip=tip, write=lambda _: str(next(counts)), **how)
    return figure(f"Confusion of the {who}: rows true, columns predicted", drawn, wide=True)


def cut(text: str, most: int = 14) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _classes(found: Found, labels: Sequence[str]) -> Markup:
    head = ["class", "examples", "precision", "recall", "F1", "F1 of the teacher"]
    rows = []
    for label, own, theirs in zip(labels, found["student"]["classes"], found["teacher"]["classes"], strict=True):
        scores = [f"{100 * own[key]:.1f}" for key in ("precision", "recall", "f1")]
        rows.append([label, f"{own['examples']:.0f}", *scores, f"{100 * theirs['f1']:.1f}"])
    return table(head, rows)


def _reliability(found: Found) -> Markup:
    """Accuracy over confidence, a point for each bin; the diagonal is perfect calibration."""
    x, y = Scale(0, 1, LEFT + 4, RIGHT - 4), Scale(0, 1, BOTTOM, TOP)
    parts: list[object] = [axes(x, y, "confidence", "accuracy")]
    parts.append(tag("line", x1=x(0), y1=y(0), x2=x(1), y2=y(1), class_="dashed"))
    names = []
    for who, colour in (("teacher", "c7"), ("student", "c1")):
        calibration = found[who]["calibration"]
        names.append((f"{who}, ECE {100 * calibration['ece']:.1f} %", colour))
        most = max(one["count"] for one in calibration["bins"])
        for one in calibration["bins"]:
            low, high = one["bin"]
            tip = f"{who}, confidence {low:g} to {high:g}: {one['count']} sentences"
            tip += f", {100 * one['accuracy']:.1f} % right"
            radius = 2.5 + 6 * (one["count"] / most) ** 0.5
            place = (x(one["confidence"]), y(one["accuracy"]))
            parts.append(circle(*place, radius, f"{colour} area", tip, fill_opacity="0.75"))
    return figure("Calibration: how often a confidence is right", drawing("Calibration", *parts), keys(names))


def _scatter(who: str, found: Found) -> Markup:
    truths, predicted = zip(*found["points"], strict=True)
    both = fitted([*truths, *predicted], 0, 1)
    x, y = Scale(both.low, both.high, LEFT + 4, RIGHT - 4), Scale(both.low, both.high, BOTTOM, TOP)
    ends = {"x1": x(both.low), "y1": y(both.low), "x2": x(both.high), "y2": y(both.high)}
    dots = [
        circle(x(a), y(b), 2.6, "c1 area", f"true {a:.2f}, {who} {b:.2f}", fill_opacity="0.55")
        for a, b in found["points"]
    ]
    parts = [axes(x, y, "true", f"prediction of the {who}"), tag("line", **ends, class_="dashed"), *dots]
    shown = f", {len(dots)} shown" if len(dots) < found["examples"] else ""
    title = f"{who.capitalize()}: root mean square error {found['rmse']:.3f} on {found['examples']} sentences{shown}"
    return figure(title, drawing("Scatter", *parts))


def worst(rows: Sequence[Found], labels: Sequence[str] | None) -> Markup:
    """A row for each sentence, the largest error first."""
    head, body = ["true", "student", "teacher", "sentence"], []
    for row in rows:
        truth = f"{row['label']:.2f}" if labels is None else labels[int(row["label"])]
        named = [_named(row[key], labels) for key in ("prediction", "teacher")]
        body.append([truth, *named, cut(" ‖ ".join(row["text"]), LONGEST)])
    return joined([tag("h4", "The sentences of the largest errors"), table(head, body, words=4)])


def _named(probabilities: Sequence[float], labels: Sequence[str] | None) -> str:
    """A class with its probability, or the number of a regression."""
    if labels is None:
        return f"{probabilities[0]:.2f}"
    best = max(range(len(labels)), key=probabilities.__getitem__)
    return f"{labels[best]} ({100 * probabilities[best]:.1f} %)"
