"""Chooses a model's codes on calibration text, and says which text that was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from calibration.data.windows import require_apart
from calibration.quantization.calibrated import calibrate
from calibration.quantization.weight_only import Coders
from calibration.scheme import Gptq
from exporter.checkpoint import Opened
from onnx_gpt.exporting import Exported
from onnx_gpt.optimizing.calibrating import calibration_windows
from onnx_gpt.parity.prove import evaluation_text
from onnx_gpt.progress import Progress
from onnx_gpt.recipe import GPTQ_WINDOWS, Recipe


def choose_codes(
    opened: Opened, exported: Exported, recipe: Recipe, folder: Path, progress: Progress
) -> tuple[Coders, dict[str, Any]]:
    """Codes for every product inside a layer of the float graph, which is not changed.

    Args:
        folder: made for what is kept meanwhile; the codes lie in it until the model has been written.

    Returns:
        Coders for `quantize_weights`, and the facts of the text for the report.

    Raises:
        OnnxGptError: see `calibration.data`; ``calibration-overlap`` where parity would be judged on the same text.
    """
    scheme = recipe.scheme()
    assert isinstance(scheme, Gptq)
    windows = calibration_windows(
        opened, exported, recipe.calibration, recipe.calibration_windows or GPTQ_WINDOWS
    )
    if recipe.parity:
        require_apart(windows.tokens, evaluation_text(opened, exported, recipe).windows)
    folder.mkdir()
    coders = calibrate(exported.model, scheme, windows.tokens, folder, progress.advance)
    return coders, windows.facts()
