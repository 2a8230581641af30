"""The part of a graph that depends on control inputs alone, and the edges at which it meets the data."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable

import onnx_ir as ir

from graph_passes.control.interface import Interface
from graph_passes.inference import facts
from graph_passes.matching import SMALL
from graph_passes.proof.subgraph import NodeSnapshot
from graph_passes.structure.constants import tensor_key

FLOWS = {
    "Add": (0, 1),
    "Sub": (0, 1),
    "Mul": (0, 1),
    "Div": (0, 1),
    "Pow": (0, 1),
    "Max": (0, 1),
    "Min": (0, 1),
    "And": (0, 1),
    "Or": (0, 1),
    "MatMul": (0, 1),
    "Where": (0, 1, 2),
    "Concat": tuple(range(16)),
    "Attention": (3,),
    "RotaryEmbedding": (1, 2, 3),
}
"""Inputs through which values mix with the data. Everything else that an island feeds is a length or an axis."""

RANDOM = frozenset(["RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial"])

BODIES = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


@dataclasses.dataclass(frozen=True)
class Use:
    """Input ``index`` of a node."""

    node: ir.Node
    index: int


@dataclasses.dataclass(frozen=True)
class Edge:
    """Where the island meets the data.

    Attributes:
        value: one of the values that are this edge: all are computed in the same way.
        uses: all places where it, or one like it, is used.
    """

    value: ir.Value
    uses: tuple[Use, ...]


@dataclasses.dataclass(frozen=True)
class Island:
    """Values that depend on control inputs alone.

    Attributes:
        values: computed from control inputs and constants.
        lengths: outputs of the Shape and Size nodes that read the data, the island's other source.
        data: everything that depends on tokens, or on what a cache holds.
        edges: in graph order.
    """

    values: frozenset[ir.Value]
    lengths: frozenset[ir.Value]
    data: frozenset[ir.Value]
    edges: tuple[Edge, ...]


def island_of(graph: ir.Graph, interface: Interface) -> Island:
    """Find the island in one walk over the nodes."""
    values: set[ir.Value] = set(interface.controls)
    data = {value for value in graph.inputs if value not in values}
    lengths: set[ir.Value] = set()
    uses: list[tuple[ir.Value, Use]] = []
    for node in graph:
        read = list(NodeSnapshot.of(node).reads())
        if node.op_type in ("Shape", "Size") and node.domain == "" and read[0] in data:
            lengths.add(node.outputs[0])
            values.add(node.outputs[0])
        elif any(value in data for value in read) or node.op_type in RANDOM:
            data.update(node.outputs)
            flows = FLOWS.get(node.op_type, ()) if node.domain == "" else ()
            for index, value in enumerate(node.inputs):
                if index in flows and value in values:
                    uses.append((value, Use(node, index)))
        elif any(value in values for value in read):
            values.update(node.outputs)
    numbers = _Numbers(lengths)
    merged: dict[int, list[tuple[ir.Value, Use]]] = {}
    for value, use in uses:
        merged.setdefault(numbers.of(value), []).append((value, use))
    edges = tuple(Edge(same[0][0], tuple(use for _, use in same)) for same in merged.values())
    return Island(frozenset(values), frozenset(lengths), frozenset(data), edges)


class _Numbers:
    """Equal numbers for values that are computed in the same way: the thirty copies of one mask are one."""

    def __init__(self, lengths: set[ir.Value]) -> None:
        self._lengths = lengths
        self._by_value: dict[ir.Value, int] = {}
        self._by_key: dict[Hashable, int] = {}

    def of(self, value: ir.Value) -> int:
        waiting = [value]
        while waiting:
            top = waiting[-1]
            node = None if top in self._lengths else top.producer()
            missing = [] if node is None else [v for v in node.inputs if v and v not in self._by_value]
            if top in self._by_value or not missing:
                waiting.pop()
                if top not in self._by_value:
                    key = self._key(top, node)
                    self._by_value[top] = self._by_key.setdefault(key, len(self._by_key))
            else:
                waiting.extend(missing)
        return self._by_value[value]

    def _key(self, value: ir.Value, node: ir.Node | None) -> Hashable:
        if value in self._lengths:
            return _length_key(value)
        if node is None:
            tensor = value.const_value
            if tensor is None or tensor.nbytes > SMALL or isinstance(tensor, ir.LazyTensor):
                return value
            return "constant", tensor_key(tensor)
        if any(attr.type in BODIES for attr in node.attributes.values()):
            return value
        inputs = tuple(None if v is None else self._by_value[v] for v in node.inputs)
        attributes = tuple((name, _plain(node.attributes[name])) for name in sorted(node.attributes))
        return node.domain, node.op_type, inputs, attributes, value.index()


def _length_key(value: ir.Value) -> Hashable:
    """Shapes of the same dims are the same, where every dim is known."""
    node = value.producer()
    assert node is not None
    sizes = facts.dims(node.inputs[0]) if node.inputs[0] is not None else None
    if sizes is None:
        return value
    bounds = tuple(
        node.attributes[name].value if name in node.attributes else None for name in ("start", "end")
    )
    return "length", node.op_type, sizes, bounds


def _plain(attribute: ir.Attr) -> Hashable:
    """An attribute's content; a tensor's name is not part of it."""
    if attribute.type != ir.AttributeType.TENSOR:
        return bytes(ir.to_proto(attribute).SerializeToString())
    return tensor_key(attribute.as_tensor())
