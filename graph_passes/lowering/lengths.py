"""How long each row of a batch is, as GroupQueryAttention wants to know it, and a guard against left padding."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from graph_passes.matching import initializer, make

LEFT_PADDING = "left_padding_is_not_supported_pad_on_the_right"
"""Node that fails on a batch padded on the left; onnxruntime puts a failing node's name into its error."""


@dataclasses.dataclass(frozen=True)
class Lengths:
    """What every attention of a graph shares.

    Attributes:
        tokens: ``seqlens_k`` int32 ``[B]``, tokens in each row so far, minus 1.
        total: ``total_sequence_length`` int32 ``[1]``, columns of the attention mask.
    """

    tokens: ir.Value
    total: ir.Value


def guard(graph: ir.Graph, attention_mask: ir.Value) -> ir.Value:
    """int32 ``[B]`` zeros, made in front of everything else, that fail on a batch padded on the left."""
    table = initializer(graph, ir.tensor(np.array([0], np.int32), name="guard.zero"))
    mask = make("Cast", [attention_mask], "guard.mask", to=ir.DataType.INT32)
    first = make("ArgMax", [mask.outputs[0]], "guard.first_token", axis=1, keepdims=0)
    zeros = make("Gather", [table, first.outputs[0]], LEFT_PADDING, axis=0)
    graph.insert_before(graph[0], [mask, first, zeros])
    return zeros.outputs[0]


def lengths(graph: ir.Graph, attention_mask: ir.Value) -> Lengths:
    """Add the nodes, once for a graph, in front of everything else.

    ``tokens = Σ mask + table[argmax mask]`` where the table is ``[−1]``: the index of a row's first real
    token is 0, or Gather finds it out of range. So the guard costs two nodes, and no optimiser can drop it.
    Tokens that follow a past must all be real: for a batch onnxruntime takes one a row and no more.
    """
    axis = initializer(graph, ir.tensor(np.array([1], np.int64), name="lengths.axis"))
    table = initializer(graph, ir.tensor(np.array([-1], np.int32), name="lengths.minus_one"))
    mask = make("Cast", [attention_mask], "lengths.mask", to=ir.DataType.INT32)
    count = make("ReduceSum", [mask.outputs[0], axis], "lengths.count", keepdims=0)
    first = make("ArgMax", [mask.outputs[0]], "lengths.first_token", axis=1, keepdims=0)
    minus_one = make("Gather", [table, first.outputs[0]], LEFT_PADDING, axis=0)
    tokens = make("Add", [count.outputs[0], minus_one.outputs[0]], "lengths.tokens")
    shape = make("Shape", [attention_mask], "lengths.columns", start=1, end=2)
    total = make("Cast", [shape.outputs[0]], "lengths.total", to=ir.DataType.INT32)
    graph.insert_before(graph[0], [mask, count, first, minus_one, tokens, shape, total])
    return Lengths(tokens.outputs[0], total.outputs[0])
