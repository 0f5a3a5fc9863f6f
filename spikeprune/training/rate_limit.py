"""The limit that a budget sets for the loss term `additions`, from one epoch to the next."""

from __future__ import annotations

from dataclasses import dataclass

from spikeprune.pruning.budget_report import TOLERANCE
from spikeprune.training.additions import AdditionsTerm

MAX_PENALTY_SCALE = 16.0  # times the weight that the losses give to additions


@dataclass
class RateLimit:
    """`limit` of the additions (None before the first epoch) and `scale` of the penalty on what exceeds it."""

    limit: float | None = None
    scale: float = 1.0
    at_goal: bool = False  # whether the previous epoch began with the budget's goal reached

    def update(self, additions: float, *, value: float, goal: float, reached: bool) -> None:
        """At an epoch's start. While masks and steps stay, additions and cost follow the firing rates alone, so both
        are taken as proportional. An epoch that began at the limit and ended above the goal doubles the scale.

        additions  a token's, as the loss term measures them now
        value      the student's cost now; `goal`: to end with; `reached`: whether a decision has brought it there
        """
        if self.at_goal and value > goal:
            self.scale = min(2 * self.scale, MAX_PENALTY_SCALE)
        self.at_goal = reached
        self.limit = additions * (rate_factor(value, goal) if reached else 1.0)

    def apply(self, term: AdditionsTerm | None) -> None:
        if term is not None and self.limit is not None:
            term.limit.fill_(self.limit)
            term.penalty_scale.fill_(self.scale)


def rate_factor(value: float, goal: float) -> float:
    """The factor on firing rates that brings the cost `value` to half of TOLERANCE below `goal`."""
    return goal * (1 - TOLERANCE / 2) / value
