"""A graph in half precision as one in float32: every float16 and bfloat16 of its types, constants and casts.

Its function is that of the same weights in exact arithmetic, nearer to what was trained than the half-precision graph
is. Casts between halves and float32 become casts from float32 to float32, which canonicalisation takes away.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)

TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype", "softmax_precision")
"""Attributes that hold a type's number."""


def has_halves(model: ir.Model) -> bool:
    """Whether a model computes or keeps anything in half precision."""
    if any(value.dtype in HALVES or _is_half(value.const_value) for value in _values(model)):
        return True
    attributes = (attribute for node in _nodes(model) for attribute in node.attributes.values())
    return any(_widened_attribute(attribute) is not None for attribute in attributes)


def widen(model: ir.Model) -> None:
    """Make every half of a model a float32, in place."""
    for value in _values(model):
        if value.dtype in HALVES:
            value.dtype = ir.DataType.FLOAT
        tensor = value.const_value
        if tensor is not None and _is_half(tensor):
            value.const_value = widened(tensor)
    for node in _nodes(model):
        for attribute in list(node.attributes.values()):
            new = _widened_attribute(attribute)
            if new is not None:
                node.attributes[attribute.name] = new


def _is_half(tensor: ir.TensorProtocol | None) -> bool:
    return tensor is not None and tensor.dtype in HALVES


def widened(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """The tensor in float32, converted when it is read."""

    def convert() -> ir.Tensor[np.ndarray]:
        return ir.Tensor(tensor.numpy().astype(np.float32), name=tensor.name)

    return ir.LazyTensor(convert, ir.DataType.FLOAT, tensor.shape, name=tensor.name)  # type: ignore[arg-type]


def _widened_attribute(attribute: ir.Attr) -> ir.Attr | None:
    if attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype in HALVES:
        array = attribute.value.numpy().astype(np.float32)
        return ir.AttrTensor(attribute.name, ir.Tensor(array, name=attribute.value.name))
    if (
        attribute.type == ir.AttributeType.INT
        and attribute.name in TYPE_ATTRIBUTES
        and attribute.value in HALVES
    ):
        return ir.AttrInt64(attribute.name, int(ir.DataType.FLOAT))
    return None


def _nodes(model: ir.Model) -> list[ir.Node]:
    found = list(ir.traversal.RecursiveGraphIterator(model.graph))
    for function in model.functions.values():
        found.extend(ir.traversal.RecursiveGraphIterator(function))
    return found


def _values(model: ir.Model) -> list[ir.Value]:
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    nodes = _nodes(model)
    for node in nodes:
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                graphs.append(attribute.value)
            elif attribute.type == ir.AttributeType.GRAPHS:
                graphs.extend(attribute.value)
    found = [value for node in nodes for value in node.outputs]
    for graph in graphs:
        found.extend(graph.inputs)
        found.extend(graph.initializers.values() if isinstance(graph, ir.Graph) else ())
    return list(dict.fromkeys(found))
