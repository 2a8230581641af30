"""A quantized graph's float twin: the same graph with the weights that its codes were made of.

What four bits cost hides most of what can be wrong with a graph: an epsilon, a window, a bias. The twin has the
candidate's own nodes, norms, tables, masks and caches, so that all of that must show in it, and its products are in
float32, so that it is judged by the reference's noise and not by a budget.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from exporter.weights import Rows, Weight, WeightTensor
from graph_passes.matching import MICROSOFT, initializer, make, replace
from onnx_gpt.parity.coded import Coded

QUANTIZED_CACHE = ("k_quant_type", "v_quant_type", "kv_cache_bit_width")
CACHE_SCALES = (12, 13)


def make_twin(model: ir.Model, coded: Sequence[Coded], weights: Mapping[str, Weight]) -> None:
    """Put weights in the place of codes, in place.

    Args:
        coded: all of the graph's (`coded_nodes`).
        weights: by role, ``[N, K]``; several nodes of one role hold consecutive rows of it.
    """
    graph = model.graph
    tables: dict[int, ir.Value] = {}
    offsets: dict[tuple[str, str], int] = {}
    for one in coded:
        start = offsets.get((one.kind, one.role), 0)
        offsets[one.kind, one.role] = start + one.shape[0]
        weight = weights[one.role]
        if one.shape[0] != weight.shape[0]:
            weight = Rows(weight, ((start, start + one.shape[0]),))
        if one.kind == "lookup":
            _lookup(graph, one, _table(graph, tables, weight))
        else:
            _product(graph, one, _table(graph, tables, weight))
    for node in list(graph):
        _float_cache(node)
    _sweep(graph)


def _table(graph: ir.Graph, tables: dict[int, ir.Value], weight: Weight) -> ir.Value:
    """A weight as ``[N, K]``, once for all that use it."""
    if id(weight) not in tables:
        tables[id(weight)] = initializer(graph, WeightTensor("float.weight", weight))
    return tables[id(weight)]


def _product(graph: ir.Graph, one: Coded, table: ir.Value) -> None:
    node = one.node
    bias = node.inputs[5] if len(node.inputs) > 5 else None
    name = f"{node.name}.float"
    product = make("FusedMatMul", [node.inputs[0], table], name, domain=MICROSOFT, transB=1)
    new, output = [product], product.outputs[0]
    if bias is not None:
        new.append(make("Add", [output, bias], f"{name}.biased"))
        output = new[-1].outputs[0]
    replace(node, [node], new, [(node.outputs[0], output)])


def _lookup(graph: ir.Graph, one: Coded, table: ir.Value) -> None:
    """Rows of the table in blocks, ``[…, K/block, block]``, the last one padded, as the codes came."""
    node = one.node
    name = f"{node.name}.float"
    rows = make("Gather", [table, node.inputs[1]], name, axis=0)
    new, output = [rows], rows.outputs[0]
    blocks = -(-one.shape[1] // one.block)
    missing = blocks * one.block - _columns(table)
    if missing:
        pads = initializer(
            graph, ir.tensor(np.array([0, 0, 0, 0, 0, missing], np.int64), name=f"{name}.pads")
        )
        new.append(make("Pad", [output, pads], f"{name}.padded"))
        output = new[-1].outputs[0]
    shape = initializer(graph, ir.tensor(np.array([0, 0, blocks, one.block], np.int64), name=f"{name}.shape"))
    new.append(make("Reshape", [output, shape], f"{name}.blocks"))
    replace(node, [node], new, [(node.outputs[0], new[-1].outputs[0])])


def _columns(table: ir.Value) -> int:
    assert table.shape is not None
    return int(table.shape.numpy()[-1])


def _float_cache(node: ir.Node) -> None:
    """Let an attention that keeps its cache as int8 keep it as float32."""
    if "kv_cache_bit_width" not in node.attributes:
        return
    for name in QUANTIZED_CACHE:
        node.attributes.pop(name, None)
    for place in CACHE_SCALES:
        node.replace_input_with(place, None)
    for value in (node.inputs[3], node.inputs[4], node.outputs[1], node.outputs[2]):
        if value is not None:
            value.type = ir.TensorType(ir.DataType.FLOAT)


def _sweep(graph: ir.Graph) -> None:
    """Drop casts of scales and codes that nothing reads any more."""
    for node in reversed(list(graph)):
        if all(not value.uses() and not value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
            del graph.initializers[name]
