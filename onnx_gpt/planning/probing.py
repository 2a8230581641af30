"""Measures what rounding does to the model at hand, in seconds to minutes: the anchor of what is read off tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from calibration.scheme import Grid
from calibration.search.units import Option
from onnx_gpt.planning.damage import key
from onnx_gpt.progress import Progress
from onnx_gpt.recipe import Recipe
from onnx_gpt.searching.search import study

PROBED: tuple[tuple[Mapping[str, object], Grid, Grid], ...] = (
    ({"quantize": "int8"}, Grid(8, 32), Grid(8, 32)),
    ({"quantize": "int4"}, Grid(4, 32), Grid(4, 32)),
    ({"quantize": "int4", "table_bits": 8}, Grid(4, 32), Grid(8, 32)),
    ({"quantize": "int4", "block_size": 64}, Grid(4, 64), Grid(4, 64)),
)
"""Settings, and the grids of layers and of the table that they mean."""


def probe(source: str, work: Path | None, progress: Progress) -> dict[str, float]:
    """Mean KL of some schemes on calibration text, rounded to nearest, by `onnx_gpt.planning.damage.key`.

    What has been measured is kept in ``work``.

    Raises:
        OnnxGptError: what `onnx_gpt.searching.search.study` raises.
    """
    recipe = Recipe("int4", method="gptq", parity=False)
    found = {}
    with study(source, recipe, "rtn", work, progress) as opened:
        for i, (settings, layers, table) in enumerate(PROBED):
            progress.advance(i, len(PROBED), "schemes")
            choice = {u.name: Option(table if u.layer is None else layers) for u in opened.units}
            found[key(settings)] = opened.whole(choice)
    return found
