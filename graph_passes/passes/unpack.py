"""(x·W + b)[from : to]  ⇒  x·W[from : to] + b[from : to], where a linear map is only ever used in parts.

GPT-2 and its kin project q, k and v at once and cut them apart. Apart, each has a role and a treatment of its own; a
target that wants them together packs them again (`qkv`).
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from exporter.weights import Rows, Weight, WeightTensor
from graph_passes.facts import dims
from graph_passes.matching import (
    constant,
    either_order,
    initializer,
    is_private,
    make,
    producer,
    replace,
    weight_of,
)
from graph_passes.outcome import Outcome

KIND = "fp"


def apply(model: ir.Model) -> Outcome:
    fired = 0
    for node in list(model.graph):
        if node.graph is None or node.op_type not in ("MatMul", "Add") or node.domain != "":
            continue
        packed = _packed(node)
        if packed is not None:
            _unpack(packed)
            fired += 1
    return Outcome(fired)


@dataclasses.dataclass(frozen=True)
class Packed:
    """A linear map whose output is cut into parts: ``(slice node, first, last)``, last excluded."""

    nodes: tuple[ir.Node, ...]
    input: ir.Value
    weight: Weight
    bias: Weight | None
    parts: tuple[tuple[ir.Node, int, int], ...]


def _packed(last: ir.Node) -> Packed | None:
    cuts = [node for node, _ in last.outputs[0].uses()]
    if not cuts or last.outputs[0].is_graph_output():
        return None
    parts = [_part(node, last.outputs[0]) for node in cuts]
    known = tuple(part for part in parts if part is not None)
    if len(known) < len(parts):
        return None
    if last.op_type == "MatMul":
        return _product(last, None, (last,), known)
    for product, vector in either_order(last):
        matmul, bias = producer(product, "MatMul"), weight_of(vector, transpose=False)
        if matmul is not None and bias is not None and len(bias.shape) == 1 and is_private(product):
            return _product(matmul, bias, (matmul, last), known)
    return None


def _product(
    matmul: ir.Node,
    bias: Weight | None,
    nodes: tuple[ir.Node, ...],
    parts: tuple[tuple[ir.Node, int, int], ...],
) -> Packed | None:
    weight = weight_of(matmul.inputs[1], transpose=True)
    if weight is None or matmul.inputs[0] is None or (bias is not None and bias.shape[0] != weight.shape[0]):
        return None
    return Packed(nodes, matmul.inputs[0], weight, bias, parts)


def _part(node: ir.Node, whole: ir.Value) -> tuple[ir.Node, int, int] | None:
    """Which channels a Slice takes; None where it is no slice of the last axis by constants."""
    if node.op_type != "Slice" or node.inputs[0] is not whole:
        return None
    shape = dims(whole)
    bounds = [constant(value) for value in node.inputs[1:]]
    if shape is None or len(bounds) < 3 or any(b is None or b.size != 1 for b in bounds):
        return None
    start, end, axis, *step = (int(b.item()) for b in bounds if b is not None)
    size = shape[-1]
    if not isinstance(size, int) or axis % len(shape) != len(shape) - 1 or step not in ([], [1]):
        return None
    first, last = (min(b + size if b < 0 else b, size) for b in (start, end))
    return (node, first, last) if 0 <= first < last else None


def _unpack(packed: Packed) -> None:
    graph = packed.nodes[-1].graph
    assert graph is not None
    new: list[ir.Node] = []
    values: list[tuple[ir.Value, ir.Value]] = []
    for node, first, last in packed.parts:
        name = node.name or f"{packed.nodes[-1].name}.{first}"
        table = WeightTensor(f"{name}.weight", Rows(packed.weight, ((first, last),)), transpose=True)
        new.append(make("MatMul", [packed.input, initializer(graph, table)], f"{name}.product"))
        if packed.bias is not None:
            vector = initializer(graph, WeightTensor(f"{name}.bias", Rows(packed.bias, ((first, last),))))
            new.append(make("Add", [new[-1].outputs[0], vector], f"{name}.biased"))
        values.append((node.outputs[0], new[-1].outputs[0]))
    replace(packed.nodes[-1], [*packed.nodes, *(node for node, _, _ in packed.parts)], new, values)
