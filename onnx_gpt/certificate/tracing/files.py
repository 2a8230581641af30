"""A written model against its source, at any later time."""

from __future__ import annotations

from pathlib import Path

from exporter.checkpoint import Opened
from exporter.onnx_format.reader import read_file
from onnx_gpt.certificate.tracing.comparing import Trace, tolerance_of, trace
from onnx_gpt.certificate.tracing.expected import expected_of

MEASURED = ("awq", "bias")
"""Methods that change weights by what a text says, which a bundle does not hold."""


def trace_file(
    model: Path, opened: Opened, *, quantize: str, method: str = "rtn", rows: int | None = None
) -> Trace | None:
    """Trace the weights of a bundle's ``.onnx`` file to a source.

    Args:
        quantize, method: what the report's recipe says.
        rows: compare so many rows of each matrix; all where None.

    Returns:
        None where the weights were changed by what a text said: w8a8 scales channels, AWQ and bias correction too. Only
        the job itself can trace those.

    Raises:
        OnnxGptError: where the file cannot be read, or the source does not fit its configuration.
    """
    if method in MEASURED or quantize == "w8a8":
        return None
    return trace(read_file(model), expected_of(opened), tolerance_of(quantize, method), rows)
