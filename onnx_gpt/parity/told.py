"""What the report beside a graph says of how its weights were made, beyond what its operators show."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from calibration.scheme import METHODS, NAMES
from exporter.errors import rejected
from onnx_gpt.bundle.writing import REPORT


@dataclasses.dataclass(frozen=True)
class Told:
    """Settings of one model, as `Recipe` has them.

    Attributes:
        quantize: ``none``, or one of `calibration.scheme.NAMES`.
        method: how codes were chosen.
        context_length: tokens that were asked for; None for the model's own.
    """

    quantize: str
    method: str = "rtn"
    context_length: int | None = None


def told_beside(model: Path) -> Told | None:
    """What is told of a graph; None where no report is beside it, or above its folder.

    Raises:
        OnnxGptError: ``bundle-invalid`` for a report that is none.
    """
    for folder in (model.parent, model.parent.parent):
        path = folder / REPORT
        if not path.is_file():
            continue
        try:
            report = json.loads(path.read_text("utf-8"))
            name = model.relative_to(folder).as_posix()
            if folder == model.parent or name in report["files"]:
                return _told(report.get("models", {}).get(name, report)["recipe"], name)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise rejected(
                "bundle-invalid", f"{path} is not a report: {error}", "build the bundle again"
            ) from error
    return None


def _told(recipe: dict[str, Any], name: str) -> Told:
    quantize, method = recipe.get("quantize"), str(recipe.get("method", "rtn"))
    if quantize is None:  # a bundle of one model, which the target gives a scheme of its own
        own = dict(entry.split("=") for entry in str(recipe["models"]).split(", "))
        quantize = own[name]
        method = "gptq" if "calibration" in recipe else "rtn"  # at most; it is not said for such a model
    if quantize not in ("none", *NAMES) or method not in METHODS:
        raise ValueError(f"it names a scheme {quantize!r}, {method!r}")
    context = recipe.get("context_length")
    return Told(str(quantize), method, context if isinstance(context, int) else None)
