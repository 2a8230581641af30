"""The gate's thresholds from flags: what is not given is the default for the scheme and the size of the model."""

from __future__ import annotations

from onnx_gpt.recipe_file import checked
from onnx_gpt.report import Limits


def limits_from(**given: float | None) -> Limits | None:
    """Thresholds by the names of `Limits`; None where none is given.

    Raises:
        OnnxGptError: ``recipe-invalid`` (exit 2) for one that is no limit.
    """
    stated = {name: value for name, value in given.items() if value is not None}
    limits: Limits | None = checked({"limits": stated}, "the limits")["limits"] if stated else None
    return limits
