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

from exporter.weight_expressions import Rows
from exporter.weight_tensor import WeightTensor
from graph_passes.inference.facts import dims
from graph_passes.lowering.linear import Linear, linear_making, linear_of
from graph_passes.matching import (
    attribute,
    counted_from_front,
    initializer,
    is_private,
    make,
    producer,
    replace,
    slice_of,
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
        moves: what stands between it and the parts: nothing, a Reshape to heads, or that and their Transpose.
        heads: every one of them is cut by itself; 1 where the output is ``[B, S, N]``.
    """

    linear: Linear
    moves: tuple[ir.Node, ...]
    heads: int
    parts: tuple[Part, ...]


def _packed(last: ir.Node) -> Packed | None:
    whole = last.outputs[0]
    parts = [_part(node, whole) for node, _ in whole.uses()]
    known = tuple(part for part in parts if part is not None)
    if not known or len(known) < len(parts) or whole.is_graph_output():
        return None
    moves = _moves(last)
    if moves is None:
        return None
    if moves:
        linear, heads = linear_of(moves[0].inputs[0]), _heads(moves[0])
    else:
        linear, heads = linear_making(whole), 1
    return None if linear is None or heads is None else Packed(linear, moves, heads, known)


def _moves(last: ir.Node) -> tuple[ir.Node, ...] | None:
    """The Reshape to heads and their Transpose, where the output of a linear map goes through them."""
    if last.op_type == "Reshape":
        return (last,)
    if last.op_type != "Transpose":
        return ()
    value = last.inputs[0]
    split = producer(value, "Reshape") if value is not None and is_private(value) else None
    return (split, last) if split is not None and list(attribute(last, "perm", ())) == SWAP else None


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
    bounds = slice_of(node)
    if shape is None or bounds is None:
        return None
    if any(user.op_type == "Concat" for user, _ in node.outputs[0].uses()):
        return None  # a head's part that is put back as it was, beside a rotated one
    axis, start, end, step = bounds
    size = shape[-1]
    if not isinstance(size, int) or axis % len(shape) != len(shape) - 1 or step != 1:
        return None
    first, last = counted_from_front(start, size), counted_from_front(end, size)
    return Part(node, first, last) if 0 <= first < last else None


def _unpack(packed: Packed) -> None:
    linear, last = packed.linear, (*packed.linear.nodes, *packed.moves)[-1]
    graph = last.graph
    assert graph is not None
    width = linear.weight.shape[0] // packed.heads
    new: list[ir.Node] = []
    values: list[tuple[ir.Value, ir.Value]] = []
    for part in packed.parts:
        name = part.node.name or f"{last.name}.{part.first}"
        rows = tuple((head * width + part.first, head * width + part.last) for head in range(packed.heads))
        table = WeightTensor(f"{name}.weight", Rows(linear.weight, rows), transpose=True)
        new.append(make("MatMul", [linear.input, initializer(graph, table)], f"{name}.product"))
        if linear.bias is not None:
            vector = initializer(graph, WeightTensor(f"{name}.bias", Rows(linear.bias, rows)))
            new.append(make("Add", [new[-1].outputs[0], vector], f"{name}.biased"))
        if packed.moves:
            target = ir.tensor(
                np.array([0, 0, packed.heads, part.last - part.first], np.int64), name=f"{name}.shape"
            )
            new.append(make("Reshape", [new[-1].outputs[0], initializer(graph, target)], f"{name}.heads"))
        if len(packed.moves) == 2:
            new.append(make("Transpose", [new[-1].outputs[0]], f"{name}.swapped", perm=SWAP))
        values.append((part.node.outputs[0], new[-1].outputs[0]))
    old = [*linear.nodes, *packed.moves, *(part.node for part in packed.parts)]
    replace(last, old, new, values)
