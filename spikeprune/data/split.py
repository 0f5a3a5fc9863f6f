"""A part of the training examples that is held out: seeded, and with every label in its share."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random


def stratified(labels: Sequence[int | float], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Rows kept and rows held out, both in rising order; the same for the same labels, share (0 to 1) and seed.

    Of each class, `share` of its examples, rounded, but at least one where it has two. Of scores (floats) one from each
    of `share` times as many equally full bins as there are examples.
    """
    random, held = Random(f"held out, {seed}"), []
    if share <= 0:
        return list(range(len(labels))), []
    if any(isinstance(label, float) for label in labels):
        held = [random.choice(rows) for rows in _bins(labels, max(1, round(share * len(labels))))]
    else:
        for rows in _classes(labels):
            held += random.sample(rows, max(round(share * len(rows)), 1 if len(rows) > 1 else 0))
    chosen = set(held)
    return [row for row in range(len(labels)) if row not in chosen], sorted(held)


def _classes(labels: Sequence[int]) -> list[list[int]]:
    found: dict[int, list[int]] = {}
    for row, label in enumerate(labels):
        found.setdefault(label, []).append(row)
    return [found[label] for label in sorted(found)]


def _bins(scores: Sequence[float], count: int) -> list[list[int]]:
    order = sorted(range(len(scores)), key=scores.__getitem__)
    return [order[len(order) * i // count : len(order) * (i + 1) // count] for i in range(count)]
