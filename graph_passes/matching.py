"""Questions that a pass asks of a graph, and the one way in which it replaces a piece of it.

Everything goes by object identity: values and nodes are compared, names never are.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from exporter.emitter import ROLE
from exporter.weight_tensor import WeightTensor
from exporter.weights import Array, Weight

MICROSOFT = "com.microsoft"
"""Domain of onnxruntime's own operators."""

SMALL = 4096
"""Bytes up to which a constant may be looked at. Weights are never read."""

NORMS = frozenset(
    [
        "RMSNormalization",
        "LayerNormalization",
        "SimplifiedLayerNormalization",
        "SkipSimplifiedLayerNormalization",
        "SkipLayerNormalization",
    ]
)
"""Ops that normalise rows, alone or of a sum."""


def producer(value: ir.Value | None, op_type: str, domain: str = "") -> ir.Node | None:
    """The node that makes a value, if it is of this op."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type and node.domain == domain else None


def is_private(value: ir.Value) -> bool:
    """Whether exactly one node uses the value, once, and the graph does not give it out."""
    return len(value.uses()) == 1 and not value.is_graph_output()


def either_order(node: ir.Node) -> Iterator[tuple[ir.Value, ir.Value]]:
    """Both orders of a commutative op's two operands."""
    a, b = node.inputs
    if a is not None and b is not None:
        yield a, b
        yield b, a


def constant(value: ir.Value | None) -> np.ndarray | None:
    """A small constant's value; None for weights, for what is computed, and for inputs that have a default."""
    tensor = value.const_value if value is not None else None
    if value is None or tensor is None or not value.is_initializer() or value.is_graph_input():
        return None
    if isinstance(tensor, ir.LazyTensor) or tensor.nbytes > SMALL:
        return None
    return tensor.numpy()


def held_by(node: ir.Node) -> ir.TensorProtocol | None:
    """What a Constant node holds."""
    given = node.attributes.get("value")
    if given is not None and given.type == ir.AttributeType.TENSOR and not given.is_ref():
        # `as_tensor` looks through a protocol, for as long as all else takes
        tensor: ir.TensorProtocol = given.value
        return tensor
    return ir.convenience.get_const_tensor(node.outputs[0])


def placed_table(node: ir.Node) -> ir.Value | None:
    """The table ``[context, n]`` of which a node takes rows by computed places or lengths, as `Control.bias` does; None
    for any other node."""
    if node.domain or node.op_type not in ("GatherND", "Slice"):
        return None
    table, *places = node.inputs
    computed = any(value is not None and value.producer() is not None for value in places)
    if table is None or not computed or not table.is_initializer() or table.is_graph_input():
        return None
    return table if table.const_value is not None and len(table.const_value.shape) == 2 else None


def is_ints(value: ir.Value | None, *expected: int) -> bool:
    """Whether a value is the constant integer, or list of integers, given."""
    array = constant(value)
    return array is not None and array.dtype.kind == "i" and array.reshape(-1).tolist() == list(expected)


def slice_of(node: ir.Node) -> tuple[int, int, int, int] | None:
    """Axis, start, end and step of a Slice of one axis by constants, as they are written."""
    arrays = [constant(value) for value in node.inputs[1:]]
    if len(arrays) < 3 or any(array is None or array.size != 1 for array in arrays):
        return None
    start, end, axis, *step = (int(array.item()) for array in arrays if array is not None)
    return axis, start, end, step[0] if step else 1


def counted_from_front(bound: int, size: int) -> int:
    """A Slice's bound within a dim of a known size."""
    return min(bound + size if bound < 0 else bound, size)


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """An attribute's value, or its default where the node does not set it."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def weight_of(value: ir.Value | None, *, transpose: bool) -> Weight | None:
    """The unread weight of an initializer: ``[out, in]`` of a linear map with ``transpose``, else a vector or
    table. Of a small float32 constant, its value."""
    tensor = value.const_value if value is not None else None
    if isinstance(tensor, WeightTensor):
        return tensor.weight if tensor.transpose == transpose else None
    array = constant(value)
    if array is None or array.dtype != np.float32 or array.ndim != (2 if transpose else 1):
        return None
    return Array(np.ascontiguousarray(array.T) if transpose else array)


def same_shape(a: ir.Value, b: ir.Value) -> bool:
    """Whether two values have the same shape for certain: a dim nobody knows is equal to none."""
    if a.shape is None or b.shape is None or len(a.shape) != len(b.shape):
        return False
    return all(
        x == y and (isinstance(x, int) or x.value is not None) for x, y in zip(a.shape, b.shape, strict=True)
    )


def role_of(node: ir.Node) -> str:
    """The node's role, ``layers.3.ffn.down``; its name where it carries none."""
    return node.metadata_props.get(ROLE) or node.name or node.op_type


def initializer(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    """Add a constant to the graph; its name is made unique."""
    name, count = str(tensor.name), 0
    while name in graph.initializers:
        count += 1
        name = f"{tensor.name}_{count}"
    tensor.name = name
    shape = ir.Shape([dim for dim in tensor.shape if isinstance(dim, int)])
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)
    graph.register_initializer(value)
    return value


def make(
    op_type: str,
    inputs: Sequence[ir.Value | None],
    name: str,
    *,
    domain: str = "",
    outputs: int = 1,
    role: str = "",
    **attributes: Any,
) -> ir.Node:
    """A new node that belongs to no graph yet; its outputs are named after it."""
    names = [name, *(f"{name}.{i}" for i in range(1, outputs))]
    return ir.node(
        op_type,
        inputs,
        attributes,
        domain=domain,
        outputs=[ir.Value(name=n) for n in names],
        name=name,
        metadata_props={ROLE: role} if role else None,
    )


def replace(
    at: ir.Node,
    old: Sequence[ir.Node],
    new: Sequence[ir.Node],
    values: Sequence[tuple[ir.Value, ir.Value]],
) -> None:
    """Put new nodes after ``at``, give them the uses, names, types and shapes of old values, drop the old nodes.

    Args:
        at: its inputs and everything before it are what the new nodes may use. May be one of ``old``.
        values: ``(old, new)`` pairs; outputs of ``old`` nodes that are missing here must have no other use.
    """
    graph = at.graph
    assert graph is not None
    listener = _LISTENER.get()
    if listener is not None:
        listener(at, old, new, values)
    for node in new:
        if node.domain:
            graph.opset_imports.setdefault(node.domain, 1)
    new = [*new]
    pairs = []
    for before, after in values:
        if after.producer() not in new:  # a value that is there already keeps its name, and is not made twice
            if not before.is_graph_output():
                before.replace_all_uses_with(after)
                continue
            new.append(ir.node("Identity", [after]))
            after = new[-1].outputs[0]
        after.meta.update(before.meta)  # what is known of the one holds for the other
        pairs.append((before, after))
    ir.convenience.replace_nodes_and_values(graph, at, old, new, [b for b, _ in pairs], [a for _, a in pairs])


Listener = Callable[
    [ir.Node, Sequence[ir.Node], Sequence[ir.Node], Sequence[tuple[ir.Value, ir.Value]]], None
]
"""Told of a replacement, with the arguments of `replace`, before it is made."""

_LISTENER: contextvars.ContextVar[Listener | None] = contextvars.ContextVar("listener", default=None)


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Tell a listener of every replacement that is made inside the block."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)
