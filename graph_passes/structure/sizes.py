"""Lengths that a graph computes, computed from its inputs' shapes alone.

An exporter asks any value for its shape. Which is asked makes no difference to the answer, but it makes masks and
positions hang on embeddings and layers. Here each length is asked for once, of an input.
"""

from __future__ import annotations

import functools

import onnx_ir as ir

from graph_passes.inference.dims import Dim, Size, symbol
from graph_passes.inference.facts import contents, dims
from graph_passes.matching import attribute, make
from graph_passes.structure import Edit
from graph_passes.structure.constants import Constants

Made = tuple[ir.Value, list[ir.Node]]
"""A value and the nodes that are new for it."""


class Sizes:
    """Integers by what they are, while one walk goes through a graph in topological order."""

    def __init__(self, graph: ir.Graph, constants: Constants) -> None:
        self.constants = constants
        self.vectors: dict[Size, ir.Value] = {}
        self.settled: set[ir.Value] = set()
        self.sources: dict[Size, tuple[ir.Value, int]] = {}
        for value in graph.inputs:
            for axis, size in enumerate(dims(value) or ()):
                if isinstance(size, Dim):
                    self.sources.setdefault(size, (value, axis))

    def rule(self, node: ir.Node, constants: Constants) -> Edit | None:
        """Integers that something other than arithmetic on shapes uses ⇒ the same, from the inputs."""
        output = node.outputs[0]
        held, shape = contents(output), dims(output)
        if (
            held is None
            or output.dtype != ir.DataType.INT64
            or not any(isinstance(size, Dim) for size in held)
        ):
            return None
        if self._is_settled(node):
            self.settled.add(output)
            if shape == (1,) and held[0] is not None:
                self.vectors.setdefault(held[0], output)
            return None
        if shape is None or len(shape) > 1 or not _is_used(output):
            return None
        known = [size for size in held if size is not None]
        made = self._vector(known, str(output.name)) if len(known) == len(held) else None
        if made is None:
            return None
        value, nodes = made
        if shape == ():
            nodes.append(make("Squeeze", [value], f"{output.name}.scalar"))
            value = nodes[-1].outputs[0]
        self.settled.update(each for node in nodes for each in node.outputs)
        return Edit([value], nodes)

    def _is_settled(self, node: ir.Node) -> bool:
        """Whether a node computes from the inputs' shapes alone, a dim at a time."""
        sources = [value for value in node.inputs if value is not None]
        if node.op_type == "Shape":
            start, end = attribute(node, "start", 0), attribute(node, "end", None)
            return sources[0].is_graph_input() and end == start + 1
        if node.op_type not in ("Add", "Concat", "Mul", "Reshape", "Squeeze", "Sub"):
            return False
        return all(value in self.settled or value.is_initializer() for value in sources)

    def _vector(self, sizes: list[Size], name: str) -> Made | None:
        """An int64 vector of the sizes."""
        values, nodes = [], []
        for i, size in enumerate(sizes):
            made = self._one(size, f"{name}.{i}")
            if made is None:
                return None
            values.append(made[0])
            nodes.extend(made[1])
        if len(values) > 1:
            nodes.append(make("Concat", values, f"{name}.sizes", axis=0))
            values = list(nodes[-1].outputs)
        return values[0], nodes

    def _one(self, size: Size, name: str) -> Made | None:
        """An int64 vector of one size."""
        if isinstance(size, int):
            return self.constants.ints(size), []
        if size in self.vectors:
            return self.vectors[size], []
        if size in self.sources:
            value, axis = self.sources[size]
            nodes = [make("Shape", [value], name, start=axis, end=axis + 1)]
        else:
            sum_of = self._sum(size, name)
            if sum_of is None:
                return None
            nodes = sum_of
        self.vectors[size] = nodes[-1].outputs[0]
        return self.vectors[size], nodes

    def _sum(self, size: Dim, name: str) -> list[ir.Node] | None:
        """Nodes that add up a polynomial."""
        nodes: list[ir.Node] = []
        terms: list[ir.Value] = []
        for i, (monomial, coefficient) in enumerate(size.terms):
            if len(monomial) == 1 and coefficient == 1 and size == symbol(monomial[0]):
                return None  # a symbol that no input has
            factors = [self._one(symbol(factor), f"{name}.{i}.{j}") for j, factor in enumerate(monomial)]
            if None in factors:
                return None
            values = [made[0] for made in factors if made is not None]
            nodes.extend(node for made in factors if made is not None for node in made[1])
            if coefficient != 1 or not values:
                values.append(self.constants.ints(coefficient))
            join = functools.partial(_joined, nodes=nodes, name=f"{name}.{i}")
            terms.append(functools.reduce(functools.partial(join, "Mul"), values))
        functools.reduce(functools.partial(_joined, "Add", nodes=nodes, name=f"{name}.sum"), terms)
        return nodes


def _joined(op_type: str, a: ir.Value, b: ir.Value, *, nodes: list[ir.Node], name: str) -> ir.Value:
    nodes.append(make(op_type, [a, b], f"{name}.{len(nodes)}"))
    return nodes[-1].outputs[0]


def _is_used(value: ir.Value) -> bool:
    """Whether something uses the value that is not itself arithmetic on shapes."""
    return value.is_graph_output() or any(
        contents(output) is None for user, _ in value.uses() for output in user.outputs
    )
