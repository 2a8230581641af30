"""Gemm ⇒ MatMul and Add; reshape(reshape(x)·W + b) ⇒ x·W + b: linear maps work on [B, S, E] and say nothing of rows.

A Gemm adds its bias between the partial sums, so the last bits differ.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common

from exporter.weight_tensor import WeightTensor
from graph_passes.inference.dims import product
from graph_passes.inference.facts import dims
from graph_passes.inference.known import Shape
from graph_passes.matching import attribute, either_order, initializer, is_private, make, producer, replace
from graph_passes.outcome import Outcome
from graph_passes.refusal import refusing
from graph_passes.structure import Edit
from graph_passes.structure.constants import Constants
from graph_passes.structure.moves import VIEWS, reshape_target, viewed

KIND = "fp"


def apply(model: ir.Model) -> Outcome:
    constants = Constants(model.graph)
    fired = 0
    for node in list(model.graph):
        if node.domain != "" or node.graph is None:
            continue
        edit = None
        with refusing(node):
            if node.op_type == "Gemm":
                edit = _apart(node, constants)
            elif node.op_type in VIEWS:
                edit = _by_rows(node, constants)
        if edit is not None:
            replace(node, [node], edit.nodes, [(node.outputs[0], edit.values[0])])
            fired += 1
    common.RemoveUnusedNodesPass()(model)
    return Outcome(fired)


def _apart(node: ir.Node, constants: Constants) -> Edit | None:
    """α·A·B + β·C in steps."""
    a, b, *rest = node.inputs
    if a is None or b is None or a.dtype is None:
        return None
    name, nodes = str(node.outputs[0].name), list[ir.Node]()

    def step(op_type: str, inputs: list[ir.Value], suffix: str, **attributes: Any) -> ir.Value:
        nodes.append(make(op_type, inputs, f"{name}.{suffix}", **attributes))
        return nodes[-1].outputs[0]

    if attribute(node, "transA", 0):
        a = step("Transpose", [a], "a", perm=[1, 0])
    if attribute(node, "transB", 0):
        b = _turned(b, node) or step("Transpose", [b], "b", perm=[1, 0])
    y = step("MatMul", [a, b], "product")
    nodes[-1].metadata_props.update(node.metadata_props)
    for value, factor, suffix in ((y, "alpha", "scaled"), (rest[0] if rest else None, "beta", "bias")):
        number = attribute(node, factor, 1.0)
        if value is None:
            continue
        if number != 1.0:
            value = step("Mul", [value, constants.scalar(number, a.dtype or ir.DataType.FLOAT)], suffix)
        y = value if suffix == "scaled" else step("Add", [y, value], "sum")
    return Edit.of(*nodes) if y is nodes[-1].outputs[0] else None


def _turned(value: ir.Value, node: ir.Node) -> ir.Value | None:
    """The transpose of an unread weight."""
    tensor, graph = value.const_value, node.graph
    if graph is None or not isinstance(tensor, WeightTensor) or value.is_graph_input():
        return None
    new = WeightTensor(f"{value.name}.turned", tensor.weight, transpose=not tensor.transpose)
    return initializer(graph, new)


def _by_rows(node: ir.Node, constants: Constants) -> Edit | None:
    """A product of a matrix of rows, shaped like the rows before it was one ⇒ the product of those."""
    shape, value = dims(node.outputs[0]), node.inputs[0]
    if shape is None or value is None or len(shape) < 3:
        return None
    bias = None
    add = producer(value, "Add")
    if add is not None and is_private(value):
        for candidate, other in either_order(add):
            if dims(other) == shape[-1:] and producer(candidate, "MatMul") is not None:
                value, bias = candidate, other
    matmul = producer(value, "MatMul")
    if matmul is None or not is_private(value) or matmul.inputs[0] is None or matmul.inputs[1] is None:
        return None
    matrix, weight = dims(matmul.inputs[0]), dims(matmul.inputs[1])
    if matrix is None or weight is None or len(matrix) != 2 or len(weight) != 2 or weight[1] != shape[-1]:
        return None
    rows = _rows(matmul.inputs[0], (*shape[:-1], weight[0]), f"{matmul.name}.rows", constants)
    if rows is None or product(shape[:-1]) != matrix[0]:
        return None
    x, nodes = rows
    nodes.append(make("MatMul", [x, matmul.inputs[1]], f"{matmul.name}.by_rows"))
    nodes[-1].metadata_props.update(matmul.metadata_props)
    if bias is not None:
        nodes.append(make("Add", [nodes[-1].outputs[0], bias], f"{matmul.name}.biased"))
    return Edit.of(*nodes)


def _rows(
    value: ir.Value, shape: Shape, name: str, constants: Constants
) -> tuple[ir.Value, list[ir.Node]] | None:
    """The value in another shape, by what it is a view of."""
    chain = viewed(value)
    for root in chain:
        if dims(root) == shape:
            return root, []
    for root in reversed(chain[1:]):
        target = reshape_target(dims(root), shape)
        if target is not None:
            node = make("Reshape", [root, constants.ints(*target)], name)
            return node.outputs[0], [node]
    return None
