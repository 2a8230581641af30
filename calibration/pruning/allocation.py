"""Who gives up how much: the split of one budget over layers that costs least, when what each level costs is known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def allocate(curves: Sequence[np.ndarray], budget: int) -> list[int]:
    """Levels of all layers that add up to a budget at the least total cost.

    Exact, by dynamic programming over the layers; of equal splits, the one that asks least of the first layers.

    Args:
        curves: of each layer, the cost of the levels 0, 1, 2 …; infinite where a level is not allowed.
        budget: what the levels add up to.

    Raises:
        ValueError: where no allowed levels add up to the budget.
    """
    best = np.full(budget + 1, np.inf)
    best[0] = 0.0
    choices: list[np.ndarray] = []
    for curve in curves:
        reach = np.full((len(curve), budget + 1), np.inf)
        for level, cost in enumerate(curve[: budget + 1]):
            reach[level, level:] = best[: budget + 1 - level] + cost
        choices.append(reach.argmin(0))
        best = reach.min(0)
    if not np.isfinite(best[budget]):
        raise ValueError(f"no levels of {len(curves)} layers add up to {budget}")
    levels: list[int] = []
    for choice in reversed(choices):
        levels.append(int(choice[budget]))
        budget -= levels[-1]
    return levels[::-1]
