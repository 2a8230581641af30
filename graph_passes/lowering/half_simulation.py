"""A float32 graph that rounds what a float16 graph would round: what float16 costs, on a machine that has none.

onnxruntime has no float16 products on x86. It runs a float16 graph by casting to float32 and back, and leaves out the
casts between nodes that it runs in float32 anyway, so that what comes out is better than on the device that it is
made for. Here every value and every weight goes through float16:

    f(x, w)  ⇒  wide(half(f(x, wide(half(w)))))

Sums inside a node stay float32, as GPUs keep them. To be run without onnxruntime's optimisations.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from graph_passes.lowering.half import FLOAT, HALF, HalfTensor, float_values, matches
from graph_passes.matching import make


def simulate(model: ir.Model, islands: Collection[str] = ()) -> int:
    """Round every value that `graph_passes.lowering.half.half` would keep in float16, in place; how many those are."""
    graph = model.graph
    values = [v for v in float_values(model) if not matches(_maker(v), islands)]
    made = {_maker(value) for value in values}
    rounded: dict[ir.Value, ir.Value] = {}
    for node in list(graph):
        if node not in made:
            continue
        for i, value in enumerate(node.inputs):
            tensor = value.const_value if value is not None else None
            if value is None or tensor is None or tensor.dtype != FLOAT or not value.is_initializer():
                continue
            if value not in rounded:
                new = ir.Value(
                    name=f"{value.name}.half",
                    type=ir.TensorType(HALF),
                    shape=value.shape,
                    const_value=HalfTensor(tensor),
                )
                graph.register_initializer(new)
                wide = make("Cast", [new], f"{value.name}.wide", to=int(FLOAT))
                graph.insert_before(node, wide)
                rounded[value] = wide.outputs[0]
            node.replace_input_with(i, rounded[value])
    for value in values:
        _through_half(graph, value)
    for value in rounded:
        if not value.uses():
            del graph.initializers[str(value.name)]
    return len(values)


def _through_half(graph: ir.Graph, value: ir.Value) -> None:
    narrow = make("Cast", [value], f"{value.name}.narrow", to=int(HALF))
    wide = make("Cast", [narrow.outputs[0]], f"{value.name}.again", to=int(FLOAT))
    given = wide.outputs[0]
    given.type, given.shape = value.type or ir.TensorType(FLOAT), value.shape
    for user, i in tuple(value.uses()):
        if user is not narrow:
            user.replace_input_with(i, given)
    graph.insert_after(_maker(value), [narrow, wide])
    if value.is_graph_output():
        at = list(graph.outputs).index(value)
        graph.outputs[at] = given
        given.name, value.name = value.name, f"{value.name}.exact"


def _maker(value: ir.Value) -> ir.Node:
    node = value.producer()
    assert node is not None
    return node
