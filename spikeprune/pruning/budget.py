"""One budget over heads, blocks of feed-forward neurons and time steps: the least loss for what is saved leaves first.

An estimate holds near the network that it was made on. Removal therefore goes in rounds: none takes more than STRIDE
of the present cost or a unit that was not part of a measured group, and the next begins with new estimates and a new
measurement. The last round ends exactly: its list is cut where the measured cost first keeps to the goal.
"""

from __future__ import annotations

from dataclasses import dataclass

from spikeprune.pruning.candidates import Candidate, cheapest
from spikeprune.pruning.estimates import RemovalEstimates

STRIDE = 0.2  # largest share of the present cost that leaves on one estimate
TOLERANCE = 0.02  # of the goal: what is closer below it counts as reached
CHOICE = 0.1  # share of a layer's units that even a small round may choose from
TRIES = 8  # candidates that may turn out too large to come back before the search for one that fits ends
SPARE = 1.5  # how much more than it needs the last round's list promises to save, since promises err


@dataclass
class Budget(RemovalEstimates):
    """The search: brings the student's measured cost to a goal, from above or from below."""

    def lower_to(self, goal: float) -> float:
        """Take candidates away until the measured cost is at most `goal`, or nothing may leave any more; the cost."""
        value = self.reading().value
        while value > goal:
            need = min(value - goal, STRIDE * value)
            found = self.candidates(min(1.0, 2 * need / value + CHOICE))
            if not found:
                return value
            before = self.state()
            self.apply(cheapest(found, need))
            value = self.reading().value
            if value < goal:  # the last round, or one that silenced more than it promised
                self.restore(before)
                self._cut(sorted(found, key=lambda c: c.order), need * SPARE, goal)
                value = self.value
        return value

    def _cut(self, ranked: list[Candidate], promised: float, goal: float) -> None:
        """Take the start of the list, unit by unit, up to where the measured cost keeps to the goal; all that saves
        `promised`, if that is not enough.

        Where the last unit taken is a large one and saves too much, other ways are tried as well: with it and fewer of
        those before it, without it and with more behind it, without steps, with single neurons only. Of those within
        the tolerance (of all, if none is) the one with the smallest loss, measured, is taken.
        """
        units, saved = [], 0.0
        for candidate in ranked:
            if saved >= promised:
                break
            units += candidate.singly()
            saved += candidate.saving
        ways = [self._shortest(units, goal)]
        last = ways[0][-1]
        if self.value_with(ways[0]) < goal * (1 - TOLERANCE):
            fine = [c for candidate in ranked if candidate.kind == "ffn" for c in candidate.singly()]
            beyond = [c for candidate in ranked for c in candidate.singly() if c != last]
            stepless = [c for c in beyond if c.kind != "steps"]
            others = [self._shortest(way, goal) for way in ([last, *ways[0][:-1]], beyond, stepless, fine) if way]
            ways += [way for way in others if self.value_with(way) <= goal]
        costs = {i: self.value_with(way) for i, way in enumerate(ways)} if len(ways) > 1 else {0: goal}
        close = [i for i, cost in costs.items() if goal * (1 - TOLERANCE) <= cost <= goal] or list(costs)
        best = min(close, key=lambda i: self.loss_with(ways[i])) if len(close) > 1 else close[0]
        self.apply(ways[best])

    def _shortest(self, units: list[Candidate], goal: float) -> list[Candidate]:
        """The start of the list from which on the measured cost keeps to the goal; all of it, if it never does."""
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
        """Bring back what lowers the loss most for its cost while the measured cost stays within `goal`; the cost.

        Only units and steps whose return, measured, lowers the loss.
        """
        value = self.value
        while value < goal * (1 - TOLERANCE):
            found = sorted(self.candidates(min(1.0, 2 * (goal - value) / goal), back=True), key=lambda c: c.order)
            room = SPARE * (goal - value)
            units, cost = [], 0.0
            for unit in (unit for candidate in reversed(found) for unit in candidate.singly() if unit.saving <= room):
                units.append(unit)
                cost += unit.saving
                if cost >= room:
                    break
            units = self._longest(units, goal)
            before, loss = self.state(), self.loss()
            self.apply(units, back=True)
            if not units or self.loss() > loss:
                self.restore(before)
                return value
            value = self.value
        return value

    def _longest(self, units: list[Candidate], goal: float) -> list[Candidate]:
        """The start of the list that can come back within the goal; where the first alone cannot, without it."""
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
