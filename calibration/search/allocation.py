"""The choice of one option for each unit: the least loss within a cost, for every cost at once.

A knapsack with one item of each group (Sinha & Zoltners 1979, "The Multiple-Choice Knapsack Problem"), solved exactly
by dynamic programming over a grid of costs. Costs that are whole multiples of something, such as bytes of aligned
tensors, lie on the grid; others are rounded up to it, so a choice that is within a budget there is within it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np

STEPS, MOST_STEPS = 1 << 14, 1 << 19
"""Costs that are told apart, from nothing to the cost of the dearest choice; more, where whole costs are then exact."""


@dataclasses.dataclass(frozen=True, eq=False)
class Frontier:
    """The best choice for every budget.

    Attributes:
        step: cost of one step of the grid.
        loss: float64 ``[steps + 1]``, least loss at a cost of at most so many steps; +∞ where there is no choice.
        picks: uint8 ``[units, steps + 1]``, the option that the unit takes there.
        steps: int64 ``[units, options]``, what each costs.
    """

    step: float
    loss: np.ndarray
    picks: np.ndarray
    steps: Sequence[np.ndarray]

    def within(self, budget: float) -> list[int] | None:
        """The choice of least loss at a cost of at most ``budget``; None where there is none."""
        at = int(min(np.floor(budget / self.step + 1e-9), len(self.loss) - 1))
        return self._choice(at) if at >= 0 and np.isfinite(self.loss[at]) else None

    def choices(self) -> Iterator[list[int]]:
        """The choices of the frontier, each with less loss than the one before, from the cheapest on."""
        before = np.concatenate([[np.inf], self.loss[:-1]])
        for at in np.flatnonzero(self.loss < before):
            yield self._choice(int(at))

    def _choice(self, at: int) -> list[int]:
        chosen = []
        for picks, steps in zip(self.picks[::-1], self.steps[::-1], strict=True):
            chosen.append(int(picks[at]))
            at -= int(steps[chosen[-1]])
        return chosen[::-1]


def frontier(costs: Sequence[Sequence[float]], losses: Sequence[Sequence[float]]) -> Frontier:
    """Solve for all budgets.

    Args:
        costs: of each option of each unit, 0 or more.
        losses: the same; any numbers, the sum counts.
    """
    most = sum(max(own) for own in costs)
    step = _common_step([cost for own in costs for cost in own], most)
    steps = [np.ceil(np.array(own) / step - 1e-9).astype(np.int64) for own in costs]
    # rounding up may take the dearest choice further by one step for each unit
    best = np.zeros(round(most / step) + len(costs) + 1)
    picks = np.zeros((len(costs), len(best)), np.uint8)
    for i, (own, loss) in enumerate(zip(steps, losses, strict=True)):
        totals = np.full((len(own), len(best)), np.inf)
        for option, (cost, extra) in enumerate(zip(own, loss, strict=True)):
            totals[option, cost:] = best[: len(best) - cost] + extra
        picks[i] = totals.argmin(axis=0)
        best = totals.min(axis=0)
    return Frontier(step, best, picks, steps)


def _common_step(costs: Sequence[float], most: float) -> float:
    """The greatest divisor of whole costs, where that is not too small; else a small part of the most."""
    if all(float(cost).is_integer() for cost in costs):
        divisor = math.gcd(*map(int, costs))
        if divisor and most / divisor <= MOST_STEPS:
            return float(divisor)
    return max(most / STEPS, np.finfo(float).tiny)
