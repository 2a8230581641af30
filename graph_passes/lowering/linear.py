"""Linear maps side by side: several maps of one input become one, and its output is split."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from exporter.emitter import ROLE
from exporter.weight_expressions import Stack
from exporter.weight_tensor import WeightTensor
from exporter.weights import Weight
from graph_passes.matching import (
    either_order,
    initializer,
    is_private,
    make,
    producer,
    weight_of,
)


@dataclasses.dataclass(frozen=True)
class Linear:
    """``x · Wᵀ (+ b)`` in a graph.

    Attributes:
        input: x.
        weight: ``[out, in]``, unread.
        bias: ``[out]``, unread, or None.
        nodes: the MatMul, and the Add where there is a bias.
    """

    input: ir.Value
    weight: Weight
    bias: Weight | None
    nodes: tuple[ir.Node, ...]

    @property
    def first(self) -> ir.Node:
        return self.nodes[0]

    @property
    def output(self) -> ir.Value:
        return self.nodes[-1].outputs[0]


def linear_of(value: ir.Value | None) -> Linear | None:
    """The linear map that makes a value which nothing else uses; its weights are expressions."""
    return linear_making(value) if value is not None and is_private(value) else None


def linear_making(value: ir.Value) -> Linear | None:
    """The linear map that makes a value, whoever uses it."""
    add = producer(value, "Add")
    if add is None:
        return _matmul(value, None, ())
    for product, bias in either_order(add):
        vector = weight_of(bias, transpose=False)
        if vector is not None and len(vector.shape) == 1 and is_private(product):
            found = _matmul(product, vector, (add,))
            if found is not None and found.weight.shape[0] == vector.shape[0]:
                return found
    return None


def _matmul(value: ir.Value, bias: Weight | None, after: tuple[ir.Node, ...]) -> Linear | None:
    matmul = producer(value, "MatMul")
    if matmul is None or matmul.inputs[0] is None:
        return None
    weight = weight_of(matmul.inputs[1], transpose=True)
    if weight is None or len(weight.shape) != 2:
        return None
    return Linear(matmul.inputs[0], weight, bias, (matmul, *after))


def stacked(linears: Sequence[Linear], name: str) -> list[ir.Node] | str:
    """Nodes of one linear map that computes all of them side by side, or why they cannot be one.

    The role is that of the first with its last part replaced: ``layers.3.attention.qkv``. Where there is none, the
    name is the first one's with a part added.
    """
    first = linears[0]
    if any(linear.input is not first.input for linear in linears):
        return "they read different inputs"
    if len({linear.bias is None for linear in linears}) > 1:
        return "only some of them have a bias"
    graph = first.first.graph
    assert graph is not None
    known = first.first.metadata_props.get(ROLE, "")
    role = f"{known.rpartition('.')[0]}.{name}" if known else ""
    stem = role or f"{first.first.name}.{name}"
    table = WeightTensor(f"{stem}.weight", Stack(tuple(linear.weight for linear in linears)), transpose=True)
    nodes = [make("MatMul", [first.input, initializer(graph, table)], stem, role=role)]
    biases = tuple(linear.bias for linear in linears if linear.bias is not None)
    if biases:
        vector = initializer(graph, WeightTensor(f"{stem}.bias", Stack(biases)))
        nodes.append(make("Add", [nodes[0].outputs[0], vector], f"{stem}.biased"))
    return nodes


def split_last(graph: ir.Graph, value: ir.Value, sizes: Sequence[int], name: str) -> ir.Node:
    """``Split`` of the last axis into parts of the given sizes."""
    if len(set(sizes)) == 1:
        return make("Split", [value], name, outputs=len(sizes), axis=-1, num_outputs=len(sizes))
    array = ir.tensor(np.array(sizes, np.int64), name=f"{name}.sizes")
    return make("Split", [value, initializer(graph, array)], name, outputs=len(sizes), axis=-1)
