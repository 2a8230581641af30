"""onnx-gpt: from a trained GPT decoder to a proven ONNX bundle.

Everything the command line does is one call here. Names are loaded when they are first used, so that
``import onnx_gpt`` is quick and never brings torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from onnx_gpt._version import __version__

if TYPE_CHECKING:
    from exporter.errors import OnnxGptError
    from onnx_gpt.explanation import Explanation, explain
    from onnx_gpt.generator import Generator
    from onnx_gpt.inspection import inspect
    from onnx_gpt.measuring import bench
    from onnx_gpt.pipeline import optimize
    from onnx_gpt.recipe import Recipe
    from onnx_gpt.report import Limits, Report
    from onnx_gpt.validation import validate

_HOMES = {
    "Explanation": "onnx_gpt.explanation",
    "Generator": "onnx_gpt.generator",
    "Limits": "onnx_gpt.report",
    "OnnxGptError": "exporter.errors",
    "Recipe": "onnx_gpt.recipe",
    "Report": "onnx_gpt.report",
    "bench": "onnx_gpt.measuring",
    "explain": "onnx_gpt.explanation",
    "inspect": "onnx_gpt.inspection",
    "optimize": "onnx_gpt.pipeline",
    "validate": "onnx_gpt.validation",
}

__all__ = [
    "Explanation",
    "Generator",
    "Limits",
    "OnnxGptError",
    "Recipe",
    "Report",
    "__version__",
    "bench",
    "explain",
    "inspect",
    "optimize",
    "validate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
