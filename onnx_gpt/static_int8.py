"""The scheme w8a8: rotate, measure on calibration text, round products to 8 bits in and 8 bits weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from calibration.data.windows import require_apart
from calibration.static.qdq import quantize_products, static_sites
from exporter.checkpoint import Opened
from exporter.errors import unsupported
from onnx_gpt.calibrating import calibration_windows, distributions
from onnx_gpt.exporting import Exported
from onnx_gpt.parity.prove import evaluation_text
from onnx_gpt.progress import Progress
from onnx_gpt.recipe import Recipe


def quantize_statically(
    opened: Opened, exported: Exported, recipe: Recipe, folder: Path, progress: Progress
) -> tuple[Sequence[str], dict[str, Any]]:
    """Make the products of a rotated float graph static, in place; what is left is for weight-only quantization.

    Args:
        folder: made for what is kept meanwhile.

    Returns:
        Roles of the products, and the facts of the text for the report.

    Raises:
        OnnxGptError: ``static-unknown-decoder`` where the source is no checkpoint, whose decoder could be rotated;
            see `calibration.data`; ``calibration-overlap`` where parity would be judged on the same text.
    """
    if exported.decoder is None:
        raise unsupported(
            "static-unknown-decoder",
            "static 8-bit folds norms and rotates channels, and the decoder of this graph is not known",
            "give the checkpoint that the graph was exported from, or use --quantize int8",
        )
    windows = calibration_windows(opened, exported, recipe.calibration)
    if recipe.parity:
        require_apart(windows.tokens, evaluation_text(opened, exported, recipe).windows)
    sites = static_sites(exported.model)
    inputs = list(dict.fromkeys(site.input for site in sites))
    spread = distributions(exported.model, inputs, windows.tokens, folder, progress)
    ranges = {value: found.least_error() for value, found in spread.items()}
    quantize_products(exported.model, sites, ranges)
    return [site.role for site in sites], windows.facts()
