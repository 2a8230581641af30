"""A piece of a graph: nodes as they were when it was cut, and what goes into them and comes out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import onnx_ir as ir

_PLAIN = frozenset(
    [ir.AttributeType.INT, ir.AttributeType.INTS, ir.AttributeType.FLOAT, ir.AttributeType.FLOATS]
)


@dataclasses.dataclass(frozen=True, eq=False)
class NodeSnapshot:
    """A node as it was when the piece was cut; it and its values are known by identity."""

    op_type: str
    domain: str
    overload: str
    inputs: tuple[ir.Value | None, ...]
    outputs: tuple[ir.Value, ...]
    attributes: tuple[ir.Attr, ...]

    @classmethod
    def of(cls, node: ir.Node) -> NodeSnapshot:
        return cls(
            node.op_type,
            node.domain,
            node.overload,
            tuple(node.inputs),
            tuple(node.outputs),
            tuple(node.attributes.values()),
        )

    def reads(self) -> Iterator[ir.Value]:
        """Inputs, and what the bodies of an If or a Loop take from outside."""
        yield from (value for value in self.inputs if value is not None)
        for attribute in self.attributes:
            for graph in bodies_of(attribute):
                yield from captured(graph)


@dataclasses.dataclass(frozen=True)
class Subgraph:
    """A piece of a graph.

    Attributes:
        inputs: values that have to be fed; initializers of the graph are not among them.
        nodes: in topological order.
        outputs: what it gives.
        opset_imports: version by domain.
        functions: the model's own functions by identifier, all of them.
    """

    inputs: tuple[ir.Value, ...]
    nodes: tuple[NodeSnapshot, ...]
    outputs: tuple[ir.Value, ...]
    opset_imports: Mapping[str, int]
    functions: Mapping[ir.OperatorIdentifier, ir.Function]

    @classmethod
    def cut(cls, model: ir.Model, outputs: Sequence[ir.Value], stop_at: Sequence[ir.Value] = ()) -> Subgraph:
        """What computes ``outputs`` from ``stop_at``, or from the graph's inputs where nothing stops it."""
        boundary, nodes = upwards(outputs, frozenset(stop_at).__contains__, live_snapshots())
        imports = dict(model.graph.opset_imports)
        return cls(boundary, nodes, tuple(outputs), imports, dict(model.functions))

    def __str__(self) -> str:
        """One line a node, in the notation of the rules: ``y = Add(x, b)``."""
        names: dict[ir.Value, str] = {}

        def name(value: ir.Value | None) -> str:
            return "" if value is None else names.setdefault(value, value.name or f"value_{len(names)}")

        lines = []
        for snapshot in self.nodes:
            settings = [f"{a.name}={a.value}" for a in snapshot.attributes if a.type in _PLAIN]
            arguments = ", ".join([*map(name, snapshot.inputs), *settings])
            lines.append(f"{', '.join(map(name, snapshot.outputs))} = {snapshot.op_type}({arguments})")
        return "; ".join([*lines, f"return {', '.join(map(name, self.outputs))}"])

    def initializers(self) -> tuple[ir.Value, ...]:
        """Values with a tensor that the piece reads and nobody feeds."""
        made = {value for snapshot in self.nodes for value in snapshot.outputs} | set(self.inputs)
        read = [value for snapshot in self.nodes for value in snapshot.reads()]
        return tuple(dict.fromkeys(v for v in (*read, *self.outputs) if v not in made))


Making = Callable[[ir.Value], NodeSnapshot | None]
"""The node that makes a value, the same object every time; None of an input or an initializer."""


def live_snapshots() -> Making:
    """Nodes as they are at the first look."""
    snapshots: dict[ir.Node, NodeSnapshot] = {}

    def made_by(value: ir.Value) -> NodeSnapshot | None:
        node = value.producer()
        if node is None:
            return None
        if node not in snapshots:
            snapshots[node] = NodeSnapshot.of(node)
        return snapshots[node]

    return made_by


def upwards(
    outputs: Sequence[ir.Value], stops: Callable[[ir.Value], bool], made_by: Making
) -> tuple[tuple[ir.Value, ...], tuple[NodeSnapshot, ...]]:
    """Values at which a walk upwards ends (initializers left out), and the nodes on the way, sorted.

    Args:
        stops: whether not to go beyond a value. Inputs and initializers end the walk by themselves.
    """
    boundary: dict[ir.Value, None] = {}
    found: set[NodeSnapshot] = set()
    done: dict[NodeSnapshot, None] = {}
    waiting: list[ir.Value | NodeSnapshot] = list(reversed(outputs))
    while waiting:
        item = waiting.pop()
        if isinstance(item, NodeSnapshot):  # all that it reads is done
            done[item] = None
            continue
        snapshot = made_by(item)
        if snapshot is None:
            if item.const_value is None:
                boundary[item] = None
        elif stops(item):
            boundary[item] = None
        elif snapshot not in found:
            found.add(snapshot)
            waiting.append(snapshot)
            waiting.extend(reversed(list(snapshot.reads())))
    return tuple(boundary), tuple(done)


def captured(graph: ir.Graph) -> list[ir.Value]:
    """Values that the body of an If or a Loop takes from outside."""
    inside: set[ir.Value] = {*graph.inputs, *graph.initializers.values()}
    found: dict[ir.Value, None] = {}
    for node in graph:
        found.update(dict.fromkeys(value for value in NodeSnapshot.of(node).reads() if value not in inside))
        inside.update(node.outputs)
    found.update(dict.fromkeys(value for value in graph.outputs if value not in inside))
    return list(found)


def bodies_of(attribute: ir.Attr) -> Sequence[ir.Graph]:
    """The bodies that an attribute of an If or a Loop holds; none of any other."""
    if attribute.type == ir.AttributeType.GRAPH:
        return [attribute.as_graph()]
    if attribute.type == ir.AttributeType.GRAPHS:
        graphs: Any = attribute.as_graphs()
        return list(graphs)
    return []
