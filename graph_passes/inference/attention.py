"""Shapes of norms and attentions."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from graph_passes.inference.dims import divide
from graph_passes.inference.known import Fact, KnownNode, Rule


def _norm(node: KnownNode) -> list[Fact]:
    """Layer and RMS norm: the result, then statistics of the rows."""
    shape, axis = node.shape(0), node.attribute("axis", -1)
    rows = None
    if shape is not None:
        axis %= len(shape)
        rows = (*shape[:axis], *(1 for _ in shape[axis:]))
    statistics = ir.DataType(node.attribute("stash_type", 1))
    return [Fact(node.dtype(0), shape), Fact(statistics, rows), Fact(statistics, rows)]


def _skip_norm(node: KnownNode) -> list[Fact]:
    shape = node.shape(0)
    rows = None if shape is None else (*shape[:-1], 1)
    statistics = Fact(ir.DataType.FLOAT, rows)
    return [Fact(node.dtype(0), shape), statistics, statistics, Fact(node.dtype(0), shape)]


def _attention(node: KnownNode) -> list[Fact]:
    """Attention of opset 23 and 24: ``[B, H, S, D]``, or ``[B, S, H·D]`` with the heads as attributes."""
    dtype, (q, k, v) = node.dtype(0), (node.shape(i) for i in range(3))
    if q is None or k is None or v is None:
        return [Fact(dtype, None)] * 4
    flat, query_heads, heads = len(q) == 3, node.attribute("q_num_heads"), node.attribute("kv_num_heads")
    if flat and (query_heads is None or heads is None):
        return [Fact(dtype, None)] * 4
    if flat:
        queries, tokens = q[1], k[1]
        widths = [divide(size, heads) for size in (k[2], v[2])]
    else:
        query_heads, heads, queries, tokens, widths = q[1], k[1], q[2], k[2], [k[3], v[3]]
    if widths[0] is None or widths[1] is None:
        return [Fact(dtype, None)] * 4
    past = node.shape(4)
    if node.has(4) and past is None:
        return [Fact(dtype, (*q[:-1], query_heads * widths[1] if flat else widths[1])), *[Fact(dtype)] * 3]
    total = tokens + (past[2] if past is not None else 0)
    result = (q[0], queries, query_heads * widths[1]) if flat else (*q[:-1], widths[1])
    present = [Fact(dtype, (q[0], heads, total, width)) for width in widths if width is not None]
    return [Fact(dtype, result), *present, Fact(dtype, (q[0], query_heads, queries, total))]


def _group_query_attention(node: KnownNode) -> list[Fact]:
    """Present is as long as past and the node's tokens, as the graph's contract has it."""
    dtype, q, past = node.dtype(0), node.shape(0), node.shape(3)
    heads, kv_heads = node.attribute("num_heads", 0), node.attribute("kv_num_heads", 0)
    if q is None or len(q) != 3:
        return [Fact(dtype, None)] * 3
    width = divide(q[2], heads if node.has(1) else heads + 2 * kv_heads)
    result = (q[0], q[1], width * heads if width is not None else node.unknown(2))
    present = None
    if past is not None:
        present = (*past[:2], past[2] + q[1], past[3] if width is None else width)
    cache = node.dtype(3) or dtype
    return [Fact(dtype, result), Fact(cache, present), Fact(cache, present)]


RULES: Mapping[str, Rule] = {
    "Attention": _attention,
    "LayerNormalization": _norm,
    "RMSNormalization": _norm,
    "SimplifiedLayerNormalization": _norm,
}
"""Rules by op."""

OF_MICROSOFT: Mapping[str, Rule] = {
    "GroupQueryAttention": _group_query_attention,
    "SkipLayerNormalization": _skip_norm,
    "SkipSimplifiedLayerNormalization": _skip_norm,
}
"""Rules by op of onnxruntime's own domain."""
