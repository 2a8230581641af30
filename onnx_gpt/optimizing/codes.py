"""Chooses a model's codes on calibration text, and says which text that was."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any

import onnxruntime as ort

from calibration.data.windows import Windows, require_apart
from calibration.quantization.calibrated import calibrate
from calibration.quantization.weight_only import Coders
from calibration.scheme import Gptq, WeightOnly
from exporter.checkpoint import Opened
from onnx_gpt._version import __version__
from onnx_gpt.certificate.canonical import digest
from onnx_gpt.certificate.source import Digests
from onnx_gpt.exporting import Exported
from onnx_gpt.optimizing.calibrating import calibration_windows
from onnx_gpt.parity.prove import evaluation_text
from onnx_gpt.progress import Progress
from onnx_gpt.recipe import GPTQ_WINDOWS, Recipe


@dataclasses.dataclass(frozen=True)
class KeptCodes:
    """Where codes lie until the model has been written.

    Attributes:
        folder: where a run of the same job was killed, its folder goes on from there.
        digests: of the source, which tell whether it was the same.
    """

    folder: Path
    digests: Digests


def choose_codes(
    opened: Opened, exported: Exported, recipe: Recipe, kept: KeptCodes, progress: Progress
) -> tuple[Coders, dict[str, Any]]:
    """Codes for every product inside a layer of the float graph, which is not changed.

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
    key = job_key(kept.digests, exported, scheme, windows)
    coders = calibrate(exported.model, scheme, windows.tokens, kept.folder, progress.advance, key)
    return coders, windows.facts()


def job_key(
    digests: Digests, exported: Exported, scheme: WeightOnly, windows: Windows, others: Collection[str] = ()
) -> str:
    """A digest of all that codes depend on: the source's bytes, its graph, the text, the scheme, versions."""
    return digest(
        {
            "source": digests(exported.module),
            "graph": [f"{node.op_type} {node.name}" for node in exported.model.graph],
            "text": windows.facts(),
            "scheme": repr(scheme),
            "others": sorted(others),
            "versions": [__version__, ort.__version__],
        }
    )
