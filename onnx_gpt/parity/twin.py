"""A candidate's float twin: the same graph with the weights that its codes were made of.

What four bits cost hides most of what can be wrong with a graph: an epsilon, a window, a bias. The twin has the
candidate's own nodes, norms, tables, masks and caches, so that all of that must show in it, and its products are in
float32 of inputs that nothing has rounded, so that it is judged by the reference's noise and not by a budget. Of a
graph in half precision even gains, biases and tables are the source's, since there they are rounded too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from calibration.kv_cache import SCALES
from exporter.onnx_format.halves import widen
from exporter.weight_expressions import Rows
from exporter.weight_tensor import WeightTensor
from exporter.weights import Weight
from onnx_gpt.certificate.tracing.expected import Expected, stacked
from onnx_gpt.certificate.tracing.found import uses_of
from onnx_gpt.certificate.tracing.stored import Plain
from onnx_gpt.parity.coded import Coded
from onnx_gpt.parity.limits import computes_in_halves
from onnx_gpt.parity.twin_nodes import Floats, multiply

QUANTIZED_CACHE = ("k_quant_type", "v_quant_type", "kv_cache_bit_width")


def make_twin(
    model: ir.Model, coded: Sequence[Coded], weights: Mapping[str, Weight], expected: Expected
) -> None:
    """Put weights in the place of codes, in place.

    Args:
        coded: all of the graph's (`coded_nodes`).
        weights: by role, ``[N, K]``; several nodes of one role hold consecutive rows of it.
        expected: what the graph should hold besides.
    """
    if computes_in_halves(model.graph) or expected.corrected:
        _exact_floats(model, expected)
        widen(model)
    graph = model.graph
    floats = Floats(graph)
    offsets: dict[tuple[str, str], int] = {}
    for one in coded:
        start = offsets.get((one.kind, one.role), 0)
        offsets[one.kind, one.role] = start + one.shape[0]
        weight = weights[one.role]
        if one.shape[0] != weight.shape[0]:
            weight = Rows(weight, ((start, start + one.shape[0]),))
        multiply(floats, one, weight)
    for node in list(graph):
        _float_cache(node)
    _sweep(graph)


def _exact_floats(model: ir.Model, expected: Expected) -> None:
    """Give every vector, table and matrix of floats the source's numbers."""
    for use in list(uses_of(model, expected)):
        parts = expected.parts(use.role, use.kind) if use.parts is None else use.parts
        if not isinstance(use.stored, Plain) or not parts:
            continue
        weight = stacked(list(parts))
        if weight.shape == use.stored.shape:
            value = use.stored.value
            value.const_value = WeightTensor(str(value.name), weight, transpose=use.stored.turned)
            value.dtype = ir.DataType.FLOAT


def _float_cache(node: ir.Node) -> None:
    """Let an attention that keeps its cache as int8 keep it as float32."""
    if "kv_cache_bit_width" not in node.attributes:
        return
    for name in QUANTIZED_CACHE:
        node.attributes.pop(name, None)
    for place in SCALES:
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
