"""A part of the training examples that is held out: seeded, with every label in its share, and with no text that the
rest has too."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from random import Random


def stratified(
    labels: Sequence[int | float], share: float, seed: int, texts: Sequence[Hashable]
) -> tuple[list[int], list[int]]:
    """Rows kept and rows held out, both in rising order; the same for the same arguments. `share`: 0 to 1.

    Rows of equal `texts` count as the first of them, and stay together. Of each class, `share` of its rows, rounded,
    but at least one where it has two. Of scores (floats) one from each of `share` times as many equally full bins as
    there are rows.
    """
    random, held = Random(f"held out, {seed}"), []
    if share <= 0:
        return list(range(len(labels))), []
    first: dict[Hashable, int] = {}
    for row, text in enumerate(texts):
        first.setdefault(text, row)
    distinct = list(first.values())
    if any(isinstance(label, float) for label in labels):
        held = [random.choice(rows) for rows in _bins(labels, distinct, max(1, round(share * len(distinct))))]
    else:
        for rows in _classes(labels, distinct):
            held += random.sample(rows, max(round(share * len(rows)), 1 if len(rows) > 1 else 0))
    chosen, parts = set(held), ([], [])
    for row, text in enumerate(texts):
        parts[first[text] in chosen].append(row)
    return parts


def _classes(labels: Sequence[int], rows: Sequence[int]) -> list[list[int]]:
    found: dict[int, list[int]] = {}
    for row in rows:
        found.setdefault(labels[row], []).append(row)
    return [found[label] for label in sorted(found)]


def _bins(scores: Sequence[float], rows: Sequence[int], count: int) -> list[list[int]]:
    order = sorted(rows, key=scores.__getitem__)
    return [order[len(order) * i // count : len(order) * (i + 1) // count] for i in range(count)]
