"""The scheme w8a8: products with 8-bit inputs and 8-bit weights, by ranges and codes from calibration text."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from calibration.quantization.weight_only import Coders
from calibration.scheme import Static
from calibration.static.calibrated import calibrate
from calibration.static.qdq import quantize_products, static_sites
from exporter.checkpoint import Opened
from onnx_gpt.exporting import Exported
from onnx_gpt.optimizing.calibrating import calibration_windows, distributions
from onnx_gpt.optimizing.codes import KeptCodes, job_key
from onnx_gpt.progress import Progress
from onnx_gpt.recipe import Recipe


def quantize_statically(
    opened: Opened,
    exported: Exported,
    recipe: Recipe,
    others: Collection[str],
    kept: KeptCodes,
    progress: Progress,
) -> tuple[Sequence[str], Coders, dict[str, Any]]:
    """Make the products of a rotated float graph static, in place; what is left is for weight-only quantization.

    Args:
        others: roles that are to be static too, their inputs rounded token by token (`onnx_gpt.optimizing.channels`).
        kept: as `onnx_gpt.optimizing.codes.choose_codes` takes it.

    Returns:
        Roles of the products, codes of what is left, and the facts of the text for the report.

    Raises:
        OnnxGptError: see `calibration.data`.
    """
    scheme = recipe.scheme()
    assert isinstance(scheme, Static)
    windows = calibration_windows(opened, exported, recipe.calibration, recipe.calibration_windows)
    sites = static_sites(exported.model, others)
    coders: Coders = {}
    if scheme.method == "gptq":
        key = job_key(kept.digests, exported, scheme, windows, others)
        chosen = calibrate(exported.model, scheme, windows.tokens, kept.folder, progress.advance, others, key)
        quantize_products(exported.model, sites, chosen.ranges_of(sites), chosen.codes)
        coders = chosen.coders
    else:
        inputs = list(dict.fromkeys(site.input for site in sites if site.role not in others))
        spread = distributions(exported.model, inputs, windows.tokens, kept.folder, progress)
        quantize_products(exported.model, sites, {value: s.least_error() for value, s in spread.items()})
    return [site.role for site in sites], coders, windows.facts()
