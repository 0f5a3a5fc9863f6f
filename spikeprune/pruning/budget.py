"""One budget over heads, blocks of feed-forward neurons and time steps: candidates are removed in the order of their
loss for their saving.

An estimate is valid near the network that it was made on. Removal therefore goes in rounds: none removes more than
STRIDE of the present cost or a unit outside a measured group, and the next begins with new estimates and a new
measurement. The last round ends exactly: its list is cut where the measured cost first is within the goal.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from spikeprune.pruning.budget_report import TOLERANCE
from spikeprune.pruning.candidates import Candidate, cheapest
from spikeprune.pruning.estimates import RemovalEstimates

STRIDE = 0.2  # largest share of the present cost that is removed on one estimate
CHOICE = 0.1  # share of a layer's units that even a small round may choose from
TRIES = 8  # candidates that may turn out too large to return before the search for one that fits ends
SPARE = 1.5  # estimated over needed saving of the last round's list, since estimates err


@dataclass
class Budget(RemovalEstimates):
    """The search: brings the student's measured cost to a goal, from above or from below."""

    def lower_to(self, goal: float) -> float:
        """Remove candidates until the measured cost is at most `goal`, or none is left; returns the cost."""
        value = self.reading().value
        while value > goal:
            need = min(value - goal, STRIDE * value)
            found = self.candidates(min(1.0, 2 * need / value + CHOICE))
            if not found:
                return value
            before = self.state()
            self.apply(cheapest(found, need))
            value = self.reading().value
            if value < goal:  # the last round, or one that saved more than estimated
                self.restore(before)
                self._remove_to_goal(sorted(found, key=lambda c: c.order), need * SPARE, goal)
                value = self.value
        return value

    def _remove_to_goal(self, ranked: list[Candidate], saving: float, goal: float) -> None:
        """Remove the start of the list, unit by unit, up to where the measured cost is within the goal; all units whose
        estimated savings are `saving`, if that is not enough. Where that saves too much, see `_alternatives`."""
        first = self._shortest(units_of(ranked, saving), goal)
        options = [first]
        if self.value_with(first) < goal * (1 - TOLERANCE):
            options += self._alternatives(ranked, first, goal)
        self.apply(self._best(options, goal))

    def _alternatives(self, ranked: list[Candidate], first: list[Candidate], goal: float) -> list[list[Candidate]]:
        """Other lists within the goal where the last unit of `first` is a large one: with it and fewer of those before
        it; without it and with more behind it; the same without time steps; single neurons only."""
        last = first[-1]
        singles = [c for candidate in ranked for c in candidate.singly()]
        others = [c for c in singles if c != last]
        without_steps = [c for c in others if c.kind != "steps"]
        neurons = [c for c in singles if c.kind == "ffn"]
        lists = [[last, *first[:-1]], others, without_steps, neurons]
        found = [self._shortest(units, goal) for units in lists if units]
        return [units for units in found if self.value_with(units) <= goal]

    def _best(self, options: list[list[Candidate]], goal: float) -> list[Candidate]:
        """Of those within the tolerance (of all, if none is) the one with the smallest measured loss."""
        if len(options) == 1:
            return options[0]
        close = [units for units in options if goal * (1 - TOLERANCE) <= self.value_with(units) <= goal] or options
        return min(close, key=self.loss_with) if len(close) > 1 else close[0]

    def _shortest(self, units: list[Candidate], goal: float) -> list[Candidate]:
        """The shortest start of the list whose removal brings the measured cost within the goal; all, if none does."""
        enough, short = len(units), 0
        if self.value_with(units) <= goal:
            while enough - short > 1:
                middle = (enough + short) // 2
                if self.value_with(units[:middle]) <= goal:
                    enough = middle
                else:
                    short = middle
        return units[:enough]

    def raise_to(self, goal: float) -> float:
        """Return the units and steps that lower the loss most for their cost while the measured cost stays within
        `goal`, and only if the loss, measured, does not rise; returns the cost."""
        value = self.value
        while value < goal * (1 - TOLERANCE):
            found = sorted(self.candidates(min(1.0, 2 * (goal - value) / goal), back=True), key=lambda c: c.order)
            allowance = SPARE * (goal - value)
            units = self._longest(returning_units(reversed(found), allowance), goal)
            before, loss = self.state(), self.loss()
            self.apply(units, back=True)
            if not units or self.loss() > loss:
                self.restore(before)
                return value
            value = self.value
        return value

    def _longest(self, units: list[Candidate], goal: float) -> list[Candidate]:
        """The longest start of the list that can return within the goal; where the first alone cannot, without it."""
        for at in range(min(len(units), TRIES)):
            fits, over = 0, len(units) - at + 1
            while over - fits > 1:
                middle = (over + fits) // 2
                if self.value_with(units[at : at + middle], back=True) <= goal:
                    fits = middle
                else:
                    over = middle
            if fits:
                return units[at : at + fits]
        return []


def units_of(ranked: Iterable[Candidate], saving: float) -> list[Candidate]:
    """The single units of the first candidates whose estimated savings together reach `saving`."""
    units, saved = [], 0.0
    for candidate in ranked:
        if saved >= saving:
            break
        units += candidate.singly()
        saved += candidate.saving
    return units


def returning_units(ranked: Iterable[Candidate], allowance: float) -> list[Candidate]:
    """The first single units whose estimated costs together reach `allowance`; without those that alone exceed it."""
    units, cost = [], 0.0
    for unit in (unit for candidate in ranked for unit in candidate.singly() if unit.saving <= allowance):
        units.append(unit)
        cost += unit.saving
        if cost >= allowance:
            break
    return units
