"""Constants of a graph: initializers, read from their files and not mapped, and what is computed from them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir


def read(value: ir.Value, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Rows of an initializer, read from its file and not mapped."""
    tensor = tensor_of(value)
    shape = [int(dim) for dim in tensor.shape.numpy()]
    stop = (shape[0] if shape else 1) if stop is None else stop
    packed = tensor.dtype.bitwidth < 8
    if not isinstance(tensor, ir.ExternalTensor) or not shape or packed:
        whole = tensor.numpy()
        return whole if not shape else whole[start:stop]
    dtype = tensor.dtype.numpy()
    width = int(np.prod(shape[1:], dtype=np.int64))
    offset = (tensor.offset or 0) + start * width * dtype.itemsize
    flat = np.fromfile(Path(tensor.path), dtype, (stop - start) * width, offset=offset)
    return flat.reshape(stop - start, *shape[1:])


_EVALUATED: dict[str, Any] = {"Add": np.add, "Mul": np.multiply, "Sub": np.subtract, "Div": np.divide}
_MOVES = ("Cast", "Identity", "Unsqueeze", "Reshape")


def can_evaluate(value: ir.Value | None) -> bool:
    """Whether a value is computed from constants in ways that `evaluate` knows."""
    if value is None:
        return False
    if is_constant(value):
        return True
    node = value.producer()
    if node is None:
        return False
    known = node.op_type in _MOVES or node.op_type in _EVALUATED
    return known and all(can_evaluate(operand) for operand in node.inputs)


def evaluate(value: ir.Value) -> np.ndarray:
    """A small computed constant."""
    if is_constant(value):
        return read(value)
    node = value.producer()
    assert node is not None
    first, *rest = [evaluate(operand) for operand in node.inputs if operand is not None]
    if node.op_type in _EVALUATED:
        result: np.ndarray = _EVALUATED[node.op_type](first, *rest)
        return result
    if node.op_type == "Cast":
        dtype: np.dtype[Any] = ir.DataType(node.attributes["to"].as_int()).numpy()
        return first.astype(dtype)
    if node.op_type == "Unsqueeze":
        return np.expand_dims(first, tuple(int(axis) for axis in rest[0]))
    if node.op_type == "Reshape":
        return first.reshape([int(size) for size in rest[0]])
    return first


def leaves(value: ir.Value) -> Iterator[ir.Value]:
    """The initializers that a computed constant is made of."""
    if is_constant(value):
        yield value
        return
    node = value.producer()
    for operand in node.inputs if node is not None else ():
        if operand is not None:
            yield from leaves(operand)


def is_constant(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None and value.is_initializer()


def tensor_of(value: ir.Value | None) -> ir.TensorProtocol:
    assert value is not None and value.const_value is not None
    return value.const_value
