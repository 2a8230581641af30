"""What tells GroupQueryAttention of padding on any side: a bias on the scores, and rows of equal length."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from exporter.control import MASKED
from graph_passes.lowering.lengths import Lengths
from graph_passes.matching import initializer, make


@dataclasses.dataclass(frozen=True)
class Padded:
    """What every attention of a graph shares.

    Attributes:
        lengths: every row as long as the attention mask.
        bias: float32 ``[B, 1, S, T]``, `MASKED` where the key is padding.
    """

    lengths: Lengths
    bias: ir.Value


def padded(node: ir.Node, tokens: ir.Value, attention_mask: ir.Value) -> Padded:
    """Add the nodes, once for a graph, in front of its first attention.

    Args:
        tokens: ``[B, S, …]``; only its length is read.
    """
    graph = node.graph
    assert graph is not None

    def ints(name: str, *values: int) -> ir.Value:
        return initializer(graph, ir.tensor(np.array(values, np.int64), name=f"padding.{name}"))

    def scalar(name: str, number: float) -> ir.Value:
        return initializer(graph, ir.tensor(np.array(number, np.float32), name=f"padding.{name}"))

    columns = make("Shape", [attention_mask], "padding.columns", start=1, end=2)
    total = make("Cast", [columns.outputs[0]], "padding.total", to=ir.DataType.INT32)
    unit = initializer(graph, ir.tensor(np.array([1], np.int32), name="padding.one"))
    last = make("Sub", [total.outputs[0], unit], "padding.last")
    rows = make("Shape", [attention_mask], "padding.rows", start=0, end=1)
    counts = make("Expand", [last.outputs[0], rows.outputs[0]], "padding.tokens")
    real = make("Cast", [attention_mask], "padding.real", to=ir.DataType.BOOL)
    per_key = make(
        "Where", [real.outputs[0], scalar("seen", 0.0), scalar("masked", MASKED)], "padding.per_key"
    )
    wide = make("Unsqueeze", [per_key.outputs[0], ints("axes", 1, 2)], "padding.wide")
    length = make("Shape", [tokens], "padding.length", start=1, end=2)
    size = make(
        "Concat",
        [rows.outputs[0], ints("heads", 1), length.outputs[0], columns.outputs[0]],
        "padding.size",
        axis=0,
    )
    bias = make("Expand", [wide.outputs[0], size.outputs[0]], "padding.bias")
    for made, dtype in (
        *((one, ir.DataType.INT64) for one in (columns, rows, length, size)),
        *((one, ir.DataType.INT32) for one in (total, last, counts)),
        *((one, ir.DataType.FLOAT) for one in (per_key, wide, bias)),
        (real, ir.DataType.BOOL),
    ):
        made.outputs[0].dtype = dtype
    graph.insert_before(node, [columns, total, last, rows, counts, real, per_key, wide, length, size, bias])
    return Padded(Lengths(counts.outputs[0], total.outputs[0]), bias.outputs[0])
