"""A user's own data in small files, and the settings that name their columns; not a test."""

from __future__ import annotations

import csv
from pathlib import Path
from random import Random

MOODS = {"traurig, müde": "awful", "neutral": "plain", '"froh"': "lovely"}  # class names, and the word that decides
COLUMNS = ["task=custom", "data.text=[review]", "data.label=mood"]


def write_reviews(path: Path, size: int = 120, seed: int = 0) -> Path:
    """Three classes in a CSV with commas, quotes and newlines in its cells, in several scripts."""
    random, moods = Random(seed), sorted(MOODS)
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "review", "mood"])
        for i in range(size):
            mood = moods[i % 3]
            filler = " ".join(random.choices(("the", "film", "映画", "Zoë"), k=3))
            writer.writerow([i, f'"{filler}",\n{MOODS[mood]}, really', mood])
    return path


def write_scores(path: Path, size: int = 80) -> Path:
    """A regression of pairs in JSON lines: the score is how many words both sentences share."""
    random, words = Random(0), ("red", "green", "blue", "black", "white", "brown")
    lines = []
    for _ in range(size):
        first, second = (random.sample(words, 2) for _ in range(2))
        score = len(set(first) & set(second)) + 0.5
        lines.append(f'{{"a": "{" ".join(first)}", "b": "{" ".join(second)}", "near": {score}}}')
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
