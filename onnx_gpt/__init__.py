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
    from onnx_gpt.bisecting.bisection import Bisection, bisect
    from onnx_gpt.bisecting.parting import Parting, compare_layers
    from onnx_gpt.certificate.verification import Verification, verify
    from onnx_gpt.comparing import Comparison, compare
    from onnx_gpt.diagnosis import doctor
    from onnx_gpt.distilling.job import distill
    from onnx_gpt.distilling.report import DistillReport
    from onnx_gpt.explanation import Explanation, explain
    from onnx_gpt.generation.generator import Generator
    from onnx_gpt.generation.measuring import bench
    from onnx_gpt.inspection import inspect
    from onnx_gpt.linting.linter import lint
    from onnx_gpt.linting.repairing import repair
    from onnx_gpt.optimizing.pipeline import optimize
    from onnx_gpt.planning.measuring import measure
    from onnx_gpt.planning.planner import Plan, plan
    from onnx_gpt.pruning.job import prune
    from onnx_gpt.pruning.report import PruneReport
    from onnx_gpt.ranging import ranges
    from onnx_gpt.recipe import Recipe
    from onnx_gpt.report import Limits, Report
    from onnx_gpt.searching.sensitivities import Sensitivity, sensitivity
    from onnx_gpt.validation import validate

_HOMES = {
    "Bisection": "onnx_gpt.bisecting.bisection",
    "DistillReport": "onnx_gpt.distilling.report",
    "Comparison": "onnx_gpt.comparing",
    "Explanation": "onnx_gpt.explanation",
    "Generator": "onnx_gpt.generation.generator",
    "Limits": "onnx_gpt.report",
    "OnnxGptError": "exporter.errors",
    "Parting": "onnx_gpt.bisecting.parting",
    "Plan": "onnx_gpt.planning.planner",
    "PruneReport": "onnx_gpt.pruning.report",
    "Recipe": "onnx_gpt.recipe",
    "Report": "onnx_gpt.report",
    "Sensitivity": "onnx_gpt.searching.sensitivities",
    "Verification": "onnx_gpt.certificate.verification",
    "bench": "onnx_gpt.generation.measuring",
    "doctor": "onnx_gpt.diagnosis",
    "bisect": "onnx_gpt.bisecting.bisection",
    "compare": "onnx_gpt.comparing",
    "compare_layers": "onnx_gpt.bisecting.parting",
    "distill": "onnx_gpt.distilling.job",
    "explain": "onnx_gpt.explanation",
    "inspect": "onnx_gpt.inspection",
    "lint": "onnx_gpt.linting.linter",
    "measure": "onnx_gpt.planning.measuring",
    "optimize": "onnx_gpt.optimizing.pipeline",
    "plan": "onnx_gpt.planning.planner",
    "prune": "onnx_gpt.pruning.job",
    "ranges": "onnx_gpt.ranging",
    "repair": "onnx_gpt.linting.repairing",
    "sensitivity": "onnx_gpt.searching.sensitivities",
    "validate": "onnx_gpt.validation",
    "verify": "onnx_gpt.certificate.verification",
}

__all__ = [
    "Bisection",
    "Comparison",
    "DistillReport",
    "Explanation",
    "Generator",
    "Limits",
    "OnnxGptError",
    "Parting",
    "Plan",
    "PruneReport",
    "Recipe",
    "Report",
    "Sensitivity",
    "Verification",
    "__version__",
    "bench",
    "bisect",
    "compare",
    "compare_layers",
    "distill",
    "doctor",
    "explain",
    "inspect",
    "lint",
    "measure",
    "optimize",
    "plan",
    "prune",
    "ranges",
    "repair",
    "sensitivity",
    "validate",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
