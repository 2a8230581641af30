"""Whether tokens meet in attention alone: what a cache of keys and values rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from graph_passes.inference import facts
from graph_passes.inference.dims import BATCH, SEQUENCE, product, symbol
from graph_passes.inference.known import Shape
from graph_passes.matching import attribute, role_of
from graph_passes.proof.subgraph import NodeSnapshot

BY_ELEMENT = frozenset(
    """
    Abs Add Cast Clip Cos Div Dropout Elu Equal Erf Exp Gelu Greater HardSigmoid HardSwish Identity IsNaN LeakyRelu Less
    Log Max Min Mish Mul Neg Not Pow Reciprocal Relu Sigmoid Sign Sin Softplus Sqrt Sub Swish Tanh ThresholdedRelu Where
    """.split()  # noqa: SIM905 (a table)
)
BY_AXIS: Mapping[str, int] = {"Softmax": -1, "LogSoftmax": -1, "Concat": 0, "Split": 0, "TopK": -1}
"""Ops that work along one axis, with what that is where they do not say it."""

NORMS = frozenset(["LayerNormalization", "RMSNormalization"])
"""Ops that work along one axis and all that follow it."""

FLAT = -1
"""Stands for the axis of tokens of ``[B·S, …]``, which is the first and the batch's too."""

MEETS_NOBODY = frozenset(["RotaryEmbedding", "Shape", "Size"])
VIEWS = frozenset(["Flatten", "Reshape", "Squeeze", "Unsqueeze"])
REDUCTIONS = frozenset(["ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "ReduceSumSquare", "ReduceL2"])


def tokens_meet_outside_attention(graph: ir.Graph, input_ids: ir.Value) -> str | None:
    """The first node other than an attention in which a token may see another one; None where there is none.

    Follows the axis of the tokens from ``input_ids`` through every node.
    """
    axes: dict[ir.Value, int] = {input_ids: 1}
    for node in graph:
        if not any(value in axes for value in NodeSnapshot.of(node).reads()):
            continue
        axis = _axis_after(node, axes)
        if isinstance(axis, str):
            return f"{role_of(node)}: {node.op_type} {axis}"
        if axis is not None:
            axes.update(dict.fromkeys(node.outputs[: 1 if node.op_type == "Attention" else None], axis))
    return None


def _axis_after(node: ir.Node, axes: Mapping[ir.Value, int]) -> int | str | None:
    """Axis of the tokens in what a node gives, None where it gives no tokens, or how it may mix them."""
    op, first = node.op_type, node.inputs[0] if node.inputs else None
    own = axes.get(first) if first is not None else None
    out = facts.dims(node.outputs[0])
    if node.domain != "" or out is None:
        return "is not known"
    if op == "Attention":
        return own
    if op in MEETS_NOBODY:
        return own if op == "RotaryEmbedding" else None
    if op in BY_ELEMENT:
        return _aligned(node, axes, len(out))
    if op == "Gather":
        return _gathered(node, axes)
    if own is None or first is None:
        return "has tokens where it should have none"
    if any(value in axes for value in node.inputs[1:]) and op != "Concat":
        return "lets tokens meet tokens"
    sizes = facts.dims(first)
    assert sizes is not None  # a value with an axis of tokens has a rank
    if own != FLAT:
        return _along(node, own, sizes, out, axes)
    if op in VIEWS:
        return _unflattened(sizes, out)
    axis = "joins tokens" if op in ("Concat", "Slice") else _along(node, 0, sizes, out, axes)
    if isinstance(axis, str):
        return axis
    return FLAT if axis == 0 else "moves tokens out of their axis"


def _along(node: ir.Node, own: int, sizes: Shape, out: Shape, axes: Mapping[ir.Value, int]) -> int | str:
    """Axis of the tokens after a node that works along some axes."""
    op, rank = node.op_type, len(sizes)
    if op in ("MatMul", "Gemm"):
        return own if own != rank - 1 and not attribute(node, "transA", 0) else "adds up tokens"
    if op in NORMS:
        return own if own < attribute(node, "axis", -1) % rank else "works along the tokens"
    if op in BY_AXIS:
        if op == "Concat" and any(axes.get(value) != own for value in node.inputs if value is not None):
            return "joins tokens to something else"
        return own if own != attribute(node, "axis", BY_AXIS[op]) % rank else "works along the tokens"
    if op in REDUCTIONS:
        reduced = _ints(node, 1, "axes")
        if reduced is None or own in [axis % rank for axis in reduced] or not attribute(node, "keepdims", 1):
            return "adds up tokens"
        return own
    if op == "Slice":
        return own  # fewer tokens, each still by itself
    if op == "Transpose":
        perm: Sequence[int] = attribute(node, "perm", range(rank)[::-1])
        return perm.index(own)
    if op == "Expand":
        axis = own + len(out) - rank
        return axis if out[axis] == sizes[own] else "repeats tokens"
    if op in VIEWS:
        return _reshaped(own, sizes, out)
    return "may let tokens meet"


def _reshaped(own: int, sizes: Shape, out: Shape) -> int | str:
    """The axis of tokens that has as many elements before it as it had."""
    before = product(sizes[:own])
    for axis, size in enumerate(out):
        if (
            size == sizes[own]
            and product(out[:axis]) == before
            and product(out[axis:]) == product(sizes[own:])
        ):
            return axis
    if own == 1 and out[0] == before * sizes[1] and product(out[1:]) == product(sizes[2:]):
        return FLAT
    return "moves tokens out of their axis"


def _unflattened(sizes: Shape, out: Shape) -> int | str:
    """The axis of tokens after a view of ``[B·S, …]``."""
    if out[0] == sizes[0]:
        return FLAT
    split = len(out) > 1 and out[0] == symbol(BATCH) and out[1] == symbol(SEQUENCE)
    return 1 if split and product(out[:2]) == sizes[0] else "moves tokens out of their axis"


def _aligned(node: ir.Node, axes: Mapping[ir.Value, int], rank: int) -> int | str:
    """Axis of the tokens in the result of an op on equal places; values without tokens are the same for all."""
    found = set()
    for value in node.inputs:
        if value is not None and value in axes:
            axis, more = axes[value], rank - len(facts.dims(value) or ())
            found.add(axis if axis == FLAT and not more else max(axis, 0) + more)
    return found.pop() if len(found) == 1 else "lets tokens meet tokens"


def _gathered(node: ir.Node, axes: Mapping[ir.Value, int]) -> int | str | None:
    """Axis of the tokens after looking rows up by them, or after taking one slice of another axis."""
    data, indices = node.inputs
    assert data is not None and indices is not None
    axis = int(attribute(node, "axis", 0)) % max(len(facts.dims(data) or ()), 1)
    if data not in axes:
        return FLAT if axes[indices] == FLAT and axis == 0 else axis + max(axes[indices], 0)
    own, more = axes[data], len(facts.dims(indices) or ()) - 1
    if own == FLAT:
        return "picks tokens by place"
    if indices in axes or own == axis:
        return "picks tokens by place"
    return own + more if own > axis else own


def _ints(node: ir.Node, index: int, name: str) -> list[int] | None:
    """Axes given as an input or as an attribute."""
    if len(node.inputs) > index and node.inputs[index] is not None:
        value = node.inputs[index]
        known = facts.contents(value) if value is not None else None
        return [n for n in known if isinstance(n, int)] if known is not None else None
    listed = attribute(node, name, None)
    return None if listed is None else list(listed)
