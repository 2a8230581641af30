"""Which of several points no other one beats in everything, and a chart of them."""

from __future__ import annotations

from collections.abc import Sequence


def front(points: Sequence[tuple[float, ...]]) -> set[int]:
    """Numbers of the points that no other is at most as large as in every coordinate, and smaller in one."""
    return {i for i, own in enumerate(points) if not any(_beats(other, own) for other in points)}


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))
