"""A chart of points as one SVG file: nothing is fetched and nothing runs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 860, 520, 90, 30, 230, 60
TICKS = (1.0, 2.0, 5.0)


@dataclasses.dataclass(frozen=True)
class Point:
    """One of them; ``front`` for those that no other beats."""

    name: str
    x: float
    y: float
    front: bool


def svg(points: Sequence[Point], *, x: str, y: str) -> str:
    """Points on logarithmic axes, those of the front joined; a y of 0 lies on the lower edge.

    Args:
        x, y: what the axes are called.
    """
    across = _Axis([point.x for point in points], LEFT, WIDTH - RIGHT)
    up = _Axis([point.y for point in points], HEIGHT - BOTTOM, TOP)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for value in across.ticks:
        at = across.place(value)
        lines += [
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="#ddd"/>',
            f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{value:g}</text>',
        ]
    for value in up.ticks:
        at = up.place(value)
        lines += [
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="#ddd"/>',
            f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{value:g}</text>',
        ]
    middle = (LEFT + WIDTH - RIGHT) / 2
    lines += [
        f'<text x="{middle}" y="{HEIGHT - 15}" text-anchor="middle">{escape(x)}</text>',
        f'<text transform="translate(20 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">{escape(y)}</text>',
    ]
    edge = sorted((point for point in points if point.front), key=lambda point: point.x)
    path = " ".join(f"{across.place(point.x):.1f},{up.place(point.y):.1f}" for point in edge)
    lines.append(f'<polyline points="{path}" fill="none" stroke="#c33"/>')
    for point in points:
        cx, cy = across.place(point.x), up.place(point.y)
        fill = "#c33" if point.front else "#888"
        name = escape(point.name)
        lines += [
            f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="4" fill="{fill}">'
            f"<title>{name}: {point.x:.4g}, {point.y:.3g}</title></circle>",
            f'<text x="{cx + 8:.1f}" y="{cy + 4:.1f}">{name}</text>',
        ]
    return "\n".join([*lines, "</svg>", ""])


class _Axis:
    """A logarithmic axis from one pixel to another, a little longer than its values."""

    def __init__(self, values: Sequence[float], start: float, stop: float) -> None:
        real = [value for value in values if value > 0] or [1.0]
        self.low, self.high = min(real) / 1.5, max(real) * 1.5
        self.start, self.stop = start, stop

    def place(self, value: float) -> float:
        share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.stop - self.start)

    @property
    def ticks(self) -> list[float]:
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        leaps = (10.0**power for power in range(first, last + 1))
        found = [leap * tick for leap in leaps for tick in (TICKS if last - first < 4 else (1.0,))]
        return [value for value in found if self.low <= value <= self.high]
