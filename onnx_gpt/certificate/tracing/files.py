"""A written model against its source, at any later time."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import onnx_ir as ir

from exporter.checkpoint import Checkpoint, Opened
from exporter.onnx_format.reader import read_file
from onnx_gpt.certificate.tracing.channels import transform_of
from onnx_gpt.certificate.tracing.comparing import Trace, tolerance_of, trace
from onnx_gpt.certificate.tracing.expected import Expected, expected_of


def trace_file(
    model: Path, opened: Opened, *, quantize: str, method: str = "rtn", rows: int | None = None
) -> Trace:
    """Trace the weights of a bundle's ``.onnx`` file to a source.

    What a text has made of them is told from the file itself: factors of channels by `transform_of`; biases that make
    up for rounding are not traced.

    Args:
        quantize, method: what the report's recipe says.
        rows: compare so many rows of each matrix; all where None.

    Raises:
        OnnxGptError: where the file cannot be read, or the source does not fit its configuration.
    """
    graph = read_file(model)
    return trace(graph, expected_in(graph, opened, quantize, method), tolerance_of(quantize, method), rows)


def expected_in(
    graph: ir.Model, opened: Opened, quantize: str, method: str, context_length: int | None = None
) -> Expected:
    """What a finished graph should hold, seen that it was made by such a recipe; its nodes carry roles."""
    if not isinstance(opened, Checkpoint):
        return expected_of(opened, None, context_length)
    transform = transform_of(opened, graph, quantize=quantize, method=method)
    return dataclasses.replace(expected_of(opened, transform), corrected=method == "bias")
