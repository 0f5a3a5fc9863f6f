"""Candidates for removal under a joint budget, and the choice of the cheapest that together save enough.

A candidate has a loss (the expected rise of the prediction loss) and a saving (in the budget's unit), both from
`estimates.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

KINDS = ("heads", "ffn", "steps")


@dataclass(frozen=True)
class Candidate:
    """`units` of one layer that are removed (or return) together; for `steps` the positions in `t_steps` that lose one
    step."""

    kind: str
    layer: int
    units: tuple[int, ...]
    loss: float
    saving: float

    @property
    def order(self) -> tuple:
        """Loss over saving; of equal ones the larger saving first, then the earlier unit."""
        return self.loss / self.saving, -self.saving, KINDS.index(self.kind), self.layer, self.units

    def singly(self) -> Iterator[Candidate]:
        if self.kind == "steps":
            yield self
            return
        n = len(self.units)
        yield from (Candidate(self.kind, self.layer, (unit,), self.loss / n, self.saving / n) for unit in self.units)


def cheapest(candidates: Iterable[Candidate], need: float) -> list[Candidate]:
    """Candidates that save `need` together (or all there are), in the order of loss over saving.

    The sum of their losses exceeds that of the best choice by less than the last one's loss: without it they are the
    start of the best fractional choice (Dantzig 1957). The last one is replaced by a single candidate that also saves
    the remainder at a smaller loss, where there is one; superfluous candidates are dropped, those of the largest loss
    first.
    """
    ranked = sorted(candidates, key=lambda c: c.order)
    chosen, saved = [], 0.0
    for candidate in ranked:
        if saved >= need:
            break
        chosen.append(candidate)
        saved += candidate.saving
    if not chosen or saved < need:
        return chosen
    rest = need - (saved - chosen[-1].saving)
    chosen[-1] = min((c for c in ranked[len(chosen) - 1 :] if c.saving >= rest), key=lambda c: (c.loss, c.order))
    spare = sum(c.saving for c in chosen) - need
    for candidate in sorted(chosen, key=lambda c: (-c.loss, c.order)):
        if candidate.saving <= spare:
            chosen.remove(candidate)
            spare -= candidate.saving
    return chosen
