"""Where a graph multiplies by a matrix or looks its rows up: what weight-only quantization rewrites."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Literal

import onnx_ir as ir

from exporter.weight_expressions import Stack, Transposed
from exporter.weight_tensor import WeightTensor
from exporter.weights import Array, Weight
from graph_passes.matching import MICROSOFT, attribute, either_order, is_private, producer, role_of

PRODUCTS = (("", "MatMul"), (MICROSOFT, "FusedMatMul"), ("", "Gemm"), ("", "Einsum"))
"""Ops that multiply by a matrix."""
PACKED = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}
"""Roles of products that passes made of several, and of those."""


@dataclasses.dataclass(frozen=True)
class Site:
    """One use of a matrix.

    Attributes:
        kind: ``multiply`` is ``input · Wᵀ (+ bias)``; ``lookup`` is rows of W at the indices ``input``.
        role: ``layers.3.ffn.down``.
        input: activations or indices.
        table: the initializer.
        weight: W ``[N, K]``, unread: rows are output channels, or rows of a table.
        bias: initializer ``[N]`` that is added, where there is one.
        nodes: what the quantized nodes replace; the last gives the site's output.
    """

    kind: Literal["multiply", "lookup"]
    role: str
    input: ir.Value
    table: ir.Value
    weight: Weight
    bias: ir.Value | None
    nodes: tuple[ir.Node, ...]

    @property
    def output(self) -> ir.Value:
        return self.nodes[-1].outputs[0]

    def as_it_stands(self) -> Site:
        """The same use with its input of now: what made it may have been replaced since."""
        given = self.nodes[0].inputs[1 if self.kind == "lookup" else 0]
        assert given is not None
        return dataclasses.replace(self, input=given)

    def parts(self) -> list[tuple[str, Weight]]:
        """The linear maps that were stacked into this one, by role, from the first row to the last."""
        stem, _, name = self.role.rpartition(".")
        names = PACKED.get(name, ())
        if isinstance(self.weight, Stack) and len(self.weight.parts) == len(names):
            return [(f"{stem}.{one}", part) for one, part in zip(names, self.weight.parts, strict=True)]
        return [(self.role, self.weight)]


def site_of(node: ir.Node) -> Site | None:
    """The site whose product or lookup is this node; None for any other node."""
    if len(node.inputs) < 2 or node.inputs[0] is None:
        return None
    if (node.domain, node.op_type) == ("", "Gather") and attribute(node, "axis", 0) == 0:
        table, weight = node.inputs[0], _matrix(node.inputs[0], transpose=False)
        if weight is None or node.inputs[1] is None:
            return None
        return Site("lookup", role_of(node), node.inputs[1], table, weight, None, (node,))
    found = _factor(node)
    if found is None:
        return None
    table, weight = found
    bias = _bias(node, weight.shape[0])
    nodes = (node,) if bias is None else (node, bias[0])
    return Site(
        "multiply", role_of(node), node.inputs[0], table, weight, None if bias is None else bias[1], nodes
    )


def _factor(node: ir.Node) -> tuple[ir.Value, Weight] | None:
    """The constant right factor of a product, as ``[out, in]``."""
    factor = node.inputs[1]
    if (node.domain, node.op_type) == ("", "MatMul"):
        transpose = producer(factor, "Transpose")
        if transpose is not None and list(attribute(transpose, "perm", (1, 0))) == [1, 0]:
            table, weight = transpose.inputs[0], _matrix(transpose.inputs[0], transpose=False)
        else:
            table, weight = factor, _matrix(factor, transpose=True)
    elif (node.domain, node.op_type) == (MICROSOFT, "FusedMatMul") and _only_transposes_b(node):
        table, weight = factor, _matrix(factor, transpose=False)
    else:
        return None
    return None if table is None or weight is None else (table, weight)


def _only_transposes_b(node: ir.Node) -> bool:
    others = ("transA", "transBatchA", "transBatchB")
    return (
        attribute(node, "transB", 0) == 1
        and attribute(node, "alpha", 1.0) == 1.0
        and not any(attribute(node, name, 0) for name in others)
    )


def _matrix(value: ir.Value | None, *, transpose: bool) -> Weight | None:
    """A float32 matrix initializer; the transposed of what lies there with ``transpose``."""
    tensor = value.const_value if value is not None else None
    if value is None or tensor is None or not value.is_initializer() or value.is_graph_input():
        return None
    if tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) != 2:
        return None
    if not isinstance(tensor, WeightTensor):
        return Transposed(Array(tensor.numpy())) if transpose else Array(tensor.numpy())
    return tensor.weight if tensor.transpose == transpose else Transposed(tensor.weight)


def _bias(node: ir.Node, width: int) -> tuple[ir.Node, ir.Value] | None:
    """The Add of a constant vector that is the only use of a product, and the vector."""
    product = node.outputs[0]
    add = next(iter(product.uses())).node if is_private(product) else None
    if add is None or (add.domain, add.op_type) != ("", "Add"):
        return None
    for one, other in either_order(add):
        constant = other.const_value is not None and other.is_initializer() and not other.is_graph_input()
        if one is product and constant and other.shape is not None and list(other.shape) == [width]:
            return add, other
    return None


def drop_unused(graph: ir.Graph, tables: Iterable[ir.Value]) -> None:
    """Take away float tables, and transposes of them, that nothing uses any more."""
    for table in set(tables):
        for node in [node for node, _ in table.uses() if node.op_type == "Transpose"]:
            if not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
                graph.remove(node, safe=True)
        if not table.uses():
            del graph.initializers[str(table.name)]


def unknown_product(node: ir.Node) -> ir.Value | None:
    """A constant matrix that a node multiplies by in a way that `site_of` does not see, if there is one."""
    if (node.domain, node.op_type) not in PRODUCTS or site_of(node) is not None:
        return None
    return next((value for value in node.inputs if _matrix(value, transpose=False) is not None), None)
