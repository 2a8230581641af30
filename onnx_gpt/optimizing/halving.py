"""float16: what does not fit it on text is found in the float graph, and stays float32 in the finished one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from calibration.half_islands import LIMIT, Island, islands
from exporter.checkpoint import Opened
from graph_passes.lowering.half import float_values, half
from graph_passes.lowering.half_simulation import simulate
from graph_passes.matching import role_of
from onnx_gpt.exporting import Exported
from onnx_gpt.optimizing.calibrating import calibration_windows, half_fits, runnable
from onnx_gpt.parity.metrics import mean_kl
from onnx_gpt.progress import Progress
from onnx_gpt.recipe import Recipe

WINDOWS = 4
"""Windows of text that every float value of the graph is measured on."""


@dataclasses.dataclass(frozen=True)
class HalfPlan:
    """What a graph needs in order to compute in float16.

    Attributes:
        islands: nodes that stay float32.
        edges: values that were measured.
        largest: the largest of them, and the role of the node that makes it.
        simulated: mean KL (float32 ‖ float16), nats a token, with every value and weight rounded and sums in float32.
        text: which text it was.
    """

    islands: tuple[Island, ...]
    edges: int
    largest: tuple[str, float]
    simulated: float
    text: Mapping[str, Any]

    def apply(self, model: ir.Model, *, cache: bool = True) -> dict[str, Any]:
        """Let the finished graph compute in float16, in place; facts for the report.

        Args:
            model: the graph that was measured, or what weight-only quantization has made of it.
            cache: keep keys and values as float16 too.
        """
        done = half(model, [island.role for island in self.islands], cache=cache)
        reasons: dict[str, str] = {island.role: island.reason for island in self.islands}
        return {
            "float16 nodes": done.nodes,
            "cache": "float16" if done.cache else "float32",
            "casts": done.casts,
            "edges measured": self.edges,
            "largest": f"{self.largest[1]:.6g} ({self.largest[0]}); float32 from {LIMIT:.6g} on",
            "simulated mean KL": float(f"{self.simulated:.3g}"),
            "islands": reasons,
        }


def plan_half(
    opened: Opened, exported: Exported, recipe: Recipe, folder: Path, progress: Progress
) -> HalfPlan:
    """Run a float graph on text and find what float16 does not hold; the graph is left as it is.

    Args:
        recipe: names the text; Python's own documentation where it names none.
        folder: made for the graph while it runs.

    Raises:
        OnnxGptError: see `calibration.data`.
    """
    windows = calibration_windows(opened, exported, recipe.calibration, recipe.calibration_windows or WINDOWS)
    return measured(exported.model, windows.tokens, windows.facts(), folder, progress)


def measured(
    model: ir.Model, tokens: np.ndarray, text: Mapping[str, Any], folder: Path, progress: Progress
) -> HalfPlan:
    """`plan_half` on tokens ``[N, S]``."""
    values = float_values(model)
    simulated = model.clone()
    fits = half_fits(model, values, tokens, folder, progress)
    worst = max(values, key=lambda value: fits[value].largest)
    maker = worst.producer()
    found = islands(model, fits)
    simulate(simulated, [island.role for island in found])
    return HalfPlan(
        found,
        len(values),
        (role_of(maker) if maker is not None else str(worst.name), fits[worst].largest),
        _divergence(model, simulated, tokens[0], folder, progress),
        text,
    )


def _divergence(
    exact: ir.Model, simulated: ir.Model, tokens: np.ndarray, folder: Path, progress: Progress
) -> float:
    """Mean KL between two graphs on one window ``[S]``; optimisations are off, or casts would go."""
    logits = []
    for model in (exact, simulated):
        with runnable(model, folder, progress, optimized=False) as candidate:
            logits.append(candidate.logits(tokens[None])[0])
    return mean_kl(logits[1], logits[0])
