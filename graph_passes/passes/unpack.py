"""(x·W + b)[from : to]  ⇒  x·W[from : to] + b[from : to], where a linear map is only ever used in parts.

GPT-2 and its kin project q, k and v at once and cut them apart; GPT-NeoX does so head by head, on [B, S, H, 3·D] or
its transpose. Apart, each has a role and a treatment of its own; a target that wants them together packs them again
(`qkv`).
It comes after the rotary rules: half of a head is a part too, but not one of the projection.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from exporter.weights import Rows, Weight, WeightTensor
from graph_passes.inference.facts import dims
from graph_passes.matching import (
    attribute,
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

SWAP = [0, 2, 1, 3]
"""[B, S, H, D] ⇄ [B, H, S, D]"""


def apply(model: ir.Model) -> Outcome:
    fired = 0
    for node in list(model.graph):
        if (
            node.graph is None
            or node.op_type not in ("MatMul", "Add", "Reshape", "Transpose")
            or node.domain != ""
        ):
            continue
        packed = _packed(node)
        if packed is not None:
            _unpack(packed)
            fired += 1
    return Outcome(fired)


@dataclasses.dataclass(frozen=True)
class Part:
    """A Slice of the last axis: channels ``[first, last)``."""

    node: ir.Node
    first: int
    last: int


@dataclasses.dataclass(frozen=True)
class Packed:
    """A linear map whose output is only ever cut into parts.

    Attributes:
        nodes: the product, and what may follow: the sum with a bias, a Reshape to heads, their Transpose.
        heads: every one of them is cut by itself; 1 where the output is ``[B, S, N]``.
        swapped: whether heads come before tokens.
    """

    nodes: tuple[ir.Node, ...]
    input: ir.Value
    weight: Weight
    bias: Weight | None
    heads: int
    swapped: bool
    parts: tuple[Part, ...]


def _packed(last: ir.Node) -> Packed | None:
    whole = last.outputs[0]
    parts = [_part(node, whole) for node, _ in whole.uses()]
    known = tuple(part for part in parts if part is not None)
    if not known or len(known) < len(parts) or whole.is_graph_output():
        return None
    nodes, heads = [last], 1
    swapped = last.op_type == "Transpose"
    if swapped:
        if attribute(last, "perm", None) is None or list(attribute(last, "perm", ())) != SWAP:
            return None
        split = _private(last.inputs[0], "Reshape")
        if split is None:
            return None
        nodes.insert(0, split)
    if nodes[0].op_type == "Reshape":
        found = _heads(nodes[0])
        linear = nodes[0].inputs[0]
        made = linear.producer() if linear is not None and is_private(linear) else None
        if found is None or made is None:
            return None
        nodes, heads = [made, *nodes], found
    return _linear(nodes, heads, swapped, known)


def _linear(nodes: list[ir.Node], heads: int, swapped: bool, parts: tuple[Part, ...]) -> Packed | None:
    matmul, bias = nodes[0], None
    if nodes[0].op_type == "Add":
        for product, vector in either_order(nodes[0]):
            found = _private(product, "MatMul")
            bias = weight_of(vector, transpose=False)
            if found is not None and bias is not None and len(bias.shape) == 1:
                matmul = found
                break
        nodes = [matmul, *nodes]
    weight = weight_of(matmul.inputs[1], transpose=True) if matmul.op_type == "MatMul" else None
    if weight is None or matmul.inputs[0] is None or (bias is not None and bias.shape[0] != weight.shape[0]):
        return None
    return Packed(tuple(nodes), matmul.inputs[0], weight, bias, heads, swapped, parts)


def _private(value: ir.Value | None, op_type: str) -> ir.Node | None:
    return producer(value, op_type) if value is not None and is_private(value) else None


def _heads(reshape: ir.Node) -> int | None:
    """H of a Reshape from ``[B, S, H·X]`` to ``[B, S, H, X]``."""
    before, after = (
        dims(value) if value is not None else None for value in (reshape.inputs[0], reshape.outputs[0])
    )
    if before is None or after is None or len(before) != 3 or len(after) != 4 or before[:2] != after[:2]:
        return None
    heads, width = after[2:]
    return heads if isinstance(heads, int) and isinstance(width, int) else None


def _part(node: ir.Node, whole: ir.Value) -> Part | None:
    """Which channels a Slice takes; None where it is no slice of the last axis by constants."""
    if node.op_type != "Slice" or node.inputs[0] is not whole:
        return None
    shape = dims(whole)
    bounds = [constant(value) for value in node.inputs[1:]]
    if shape is None or len(bounds) < 3 or any(b is None or b.size != 1 for b in bounds):
        return None
    if any(user.op_type == "Concat" for user, _ in node.outputs[0].uses()):
        return None  # a head's part that is put back as it was, beside a rotated one
    start, end, axis, *step = (int(b.item()) for b in bounds if b is not None)
    size = shape[-1]
    if not isinstance(size, int) or axis % len(shape) != len(shape) - 1 or step not in ([], [1]):
        return None
    first, last = (min(b + size if b < 0 else b, size) for b in (start, end))
    return Part(node, first, last) if 0 <= first < last else None


def _unpack(packed: Packed) -> None:
    graph = packed.nodes[-1].graph
    assert graph is not None
    width = packed.weight.shape[0] // packed.heads
    new: list[ir.Node] = []
    values: list[tuple[ir.Value, ir.Value]] = []
    for part in packed.parts:
        name = part.node.name or f"{packed.nodes[-1].name}.{part.first}"
        rows = tuple((head * width + part.first, head * width + part.last) for head in range(packed.heads))
        table = WeightTensor(f"{name}.weight", Rows(packed.weight, rows), transpose=True)
        new.append(make("MatMul", [packed.input, initializer(graph, table)], f"{name}.product"))
        if packed.bias is not None:
            vector = initializer(graph, WeightTensor(f"{name}.bias", Rows(packed.bias, rows)))
            new.append(make("Add", [new[-1].outputs[0], vector], f"{name}.biased"))
        if packed.nodes[-1].op_type in ("Reshape", "Transpose"):
            target = ir.tensor(
                np.array([0, 0, packed.heads, part.last - part.first], np.int64), name=f"{name}.shape"
            )
            new.append(make("Reshape", [new[-1].outputs[0], initializer(graph, target)], f"{name}.heads"))
        if packed.swapped:
            new.append(make("Transpose", [new[-1].outputs[0]], f"{name}.swapped", perm=SWAP))
        values.append((part.node.outputs[0], new[-1].outputs[0]))
    replace(packed.nodes[-1], [*packed.nodes, *(part.node for part in packed.parts)], new, values)
