"""(x·Wq, x·Wk, x·Wv) ⇒ split(x·[Wq Wk Wv]), and unsplit where it goes straight into GroupQueryAttention.

Where a norm, over each head or over all, or a rotation stands between, the split stays.
"""

from __future__ import annotations

import onnx_ir as ir

from graph_passes.lowering.linear import Linear, linear_of, split_last, stacked
from graph_passes.matching import MICROSOFT, is_private, producer, replace, role_of
from graph_passes.outcome import NearMiss, Outcome

KIND = "fp"


def apply(model: ir.Model) -> Outcome:
    fired, misses = 0, []
    for node in [n for n in model.graph if n.op_type == "GroupQueryAttention" and n.domain == MICROSOFT]:
        if node.inputs[1] is None:
            continue  # packed already
        reason = _pack(node)
        if reason:
            misses.append(NearMiss.of(node, reason))
        else:
            fired += 1
    return Outcome.of(fired, misses)


def _pack(node: ir.Node) -> str:
    """Pack the projections of one attention; why not, where that cannot be."""
    projected = [_projection(value) for value in node.inputs[:3]]
    found = [linear_of(value) for value in projected]
    linears = [linear for linear in found if linear is not None]
    if len(linears) != 3:
        others = [name for name, linear in zip("qkv", found, strict=True) if linear is None]
        return f"{' and '.join(others)}: no private linear map (a product with a weight, used here alone)"
    new = stacked(linears, "qkv")
    if isinstance(new, str):
        return new
    packed = new[-1].outputs[0]
    old = [n for linear in linears for n in linear.nodes]
    if all(value is node.inputs[i] for i, value in enumerate(projected)):
        for i, value in enumerate((packed, None, None)):
            node.replace_input_with(i, value)
        replace(linears[0].first, old, new, [])
        return ""
    return _split(linears, old, new)


def _split(linears: list[Linear], old: list[ir.Node], new: list[ir.Node]) -> str:
    graph = linears[0].first.graph
    assert graph is not None
    sizes = [linear.weight.shape[0] for linear in linears]
    split = split_last(graph, new[-1].outputs[0], sizes, f"{role_of(new[0])}.split")
    parts = [(linear.output, part) for linear, part in zip(linears, split.outputs, strict=True)]
    replace(linears[0].first, old, [*new, split], parts)
    return ""


def _projection(value: ir.Value | None) -> ir.Value | None:
    """What is under the rotation and the norm, over each head or over all, in whatever order; the value itself where
    there is neither."""
    return _under_rotation(_under_norm(_under_rotation(value)))


def _under_rotation(value: ir.Value | None) -> ir.Value | None:
    rotation = producer(value, "RotaryEmbedding")
    if rotation is not None and is_private(rotation.outputs[0]):
        return rotation.inputs[0]
    return value


def _under_norm(value: ir.Value | None) -> ir.Value | None:
    merge = producer(value, "Reshape")
    normed = merge.inputs[0] if merge else value
    norm = producer(normed, "RMSNormalization") or producer(normed, "LayerNormalization")
    split = producer(norm.inputs[0], "Reshape") if norm and merge else None
    if norm is None or (merge is None) != (split is None):
        return value
    between = [node for node in (merge, norm, split) if node is not None]
    return between[-1].inputs[0] if all(is_private(node.outputs[0]) for node in between) else value
