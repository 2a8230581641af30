"""A heat map of a table of distances, as an SVG file that any browser shows."""

from __future__ import annotations

import math
from collections.abc import Iterable
from xml.sax.saxutils import escape

from onnx_gpt.bisecting.aligning import KINDS

WIDE, HIGH, LEFT, TOP = 74, 20, 70, 64
DECADES = 5
"""Orders of magnitude from white to full colour, below an error of 1."""


def heat(error: float) -> float:
    """0 for an error of 10⁻⁵ of the value or less, 1 for one as large as the value: equal steps for equal factors."""
    if not error > 0:
        return 0.0
    return min(1.0, max(0.0, 1.0 + math.log10(min(error, 1.0)) / DECADES)) if math.isfinite(error) else 1.0


def heat_map(cells: Iterable[tuple[str, str, float, float]], title: str) -> str:
    """Rows are layers, columns points; on the left what enters at each, on the right what it has grown to.

    Args:
        cells: layer (empty for none), point, error that enters, error grown.
    """
    rows: dict[str, dict[str, tuple[float, float]]] = {}
    for layer, point, enters, grown in cells:
        rows.setdefault(layer or point, {})[point if layer else "—"] = (enters, grown)
    columns = [*KINDS, "—"]
    half = len(columns) * WIDE + 30
    width, height = LEFT + 2 * half, TOP + HIGH * len(rows) + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="11">',
        f'<text x="8" y="16" font-size="13">{escape(title)}: relative error</text>',
    ]
    for side, name in enumerate(("enters", "grown")):
        left = LEFT + side * half
        parts.append(f'<text x="{left}" y="36" font-weight="bold">{name}</text>')
        for i, column in enumerate(columns):
            parts.append(
                f'<text x="{left + i * WIDE + 4}" y="{TOP - 8}">{escape(column.replace("_", " "))}</text>'
            )
    for j, (row, values) in enumerate(rows.items()):
        y = TOP + j * HIGH
        parts.append(f'<text x="{LEFT - 8}" y="{y + 14}" text-anchor="end">{escape(row)}</text>')
        for column, pair in values.items():
            for side, error in enumerate(pair):
                x = LEFT + side * half + columns.index(column) * WIDE
                parts.append(
                    f'<rect x="{x}" y="{y}" width="{WIDE - 2}" height="{HIGH - 2}" fill="{colour(error)}"/>'
                    f'<text x="{x + 4}" y="{y + 13}">{error:.2g}</text>'
                )
    return "\n".join([*parts, "</svg>", ""])


def colour(error: float) -> str:
    """White to red, as hexadecimal."""
    share = heat(error)
    return f"#ff{round(255 - 155 * share):02x}{round(255 - 190 * share):02x}"
