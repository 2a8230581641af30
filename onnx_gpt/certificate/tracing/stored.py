"""What a finished graph multiplies by, looks up and adds: weights as the file has them, dequantized by rows."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from calibration.dynamic.blocks import CHANNELS
from calibration.quantization.pack import unpack
from graph_passes.matching import attribute

Rows = tuple[np.ndarray, np.ndarray | None, np.ndarray | None]
"""Values float32 ``[R, …]``; for codes also the size of each one's step, and whether it is at an end of its range."""


class Stored(abc.ABC):
    """One weight of the file. ``initializers`` are the values that it is made of."""

    shape: tuple[int, ...]
    initializers: tuple[ir.Value, ...]

    @abc.abstractmethod
    def rows(self, start: int, stop: int) -> Rows:
        """Rows ``[start, stop)``."""


@dataclasses.dataclass
class Plain(Stored):
    """Floats. ``turned`` where the file has ``[K, N]`` for ``[N, K]``."""

    value: ir.Value
    turned: bool

    def __post_init__(self) -> None:
        shape = tuple(int(dim) for dim in _tensor(self.value).shape.numpy())
        self.shape = shape[::-1] if self.turned else shape
        self.initializers = (self.value,)

    @property
    def half(self) -> bool:
        return _tensor(self.value).dtype == ir.DataType.FLOAT16

    def rows(self, start: int, stop: int) -> Rows:
        if self.turned:
            return np.asarray(read(self.value)[:, start:stop].T, np.float32), None, None
        return np.asarray(read(self.value, start, stop), np.float32), None, None


@dataclasses.dataclass
class Blocks(Stored):
    """Codes in blocks along rows, as MatMulNBits and GatherBlockQuantized have them.

    Attributes:
        codes: uint8 ``[N, blocks, bytes]``.
        scale: a constant ``[N, blocks(, 1)]``.
        shift: a constant ``[N, blocks]`` that is added to a block's values, or None.
    """

    codes: ir.Value
    scale: ir.Value
    shift: ir.Value | None
    bits: int
    block: int
    columns: int

    def __post_init__(self) -> None:
        self.shape = (int(_tensor(self.codes).shape.numpy()[0]), self.columns)
        values = [self.scale] if self.shift is None else [self.scale, self.shift]
        self.initializers = (self.codes, *(leaf for value in values for leaf in leaves(value)))
        self._scale: np.ndarray | None = None
        self._shift: np.ndarray | None = None

    def cut(self, columns: int) -> Blocks:
        """Without what fills up the last block; a lookup's codes do not say where that begins."""
        padded = columns <= self.columns < columns + self.block
        return dataclasses.replace(self, columns=columns) if padded else self

    def rows(self, start: int, stop: int) -> Rows:
        if self._scale is None:
            blocks = -(-self.columns // self.block)
            self._scale = evaluate(self.scale).astype(np.float32).reshape(self.shape[0], blocks)
            if self.shift is not None:
                self._shift = evaluate(self.shift).astype(np.float32).reshape(self.shape[0], blocks)
        packed = read(self.codes, start, stop)
        codes = unpack(packed.reshape(stop - start, -1), self.bits, self.columns)
        scale = np.repeat(self._scale[start:stop], self.block, axis=1)[:, : self.columns]
        values = (codes.astype(np.float32) - np.float32(1 << (self.bits - 1))) * scale
        if self._shift is not None:
            values += np.repeat(self._shift[start:stop], self.block, axis=1)[:, : self.columns]
        return values, np.abs(scale), (codes == 0) | (codes == (1 << self.bits) - 1)


@dataclasses.dataclass
class Channels(Stored):
    """int8 codes ``[K, N]`` with a scale for each output channel."""

    codes: ir.Value
    scale: ir.Value

    def __post_init__(self) -> None:
        columns, rows = (int(dim) for dim in _tensor(self.codes).shape.numpy())
        self.shape = (rows, columns)
        self.initializers = (self.codes, *leaves(self.scale))

    def rows(self, start: int, stop: int) -> Rows:
        codes = read(self.codes)[:, start:stop].T
        scale = np.broadcast_to(evaluate(self.scale).astype(np.float32).reshape(-1), self.shape[:1])
        steps = np.broadcast_to(np.abs(scale[start:stop])[:, None], codes.shape)
        return codes.astype(np.float32) * scale[start:stop, None], steps, np.abs(codes) >= 127


@dataclasses.dataclass
class ColumnBlocks(Stored):
    """int8 codes in narrow blocks of channels (`calibration.dynamic.blocks`).

    Attributes:
        codes: int8 ``[C, (G,) K/G, n]``.
        scale: float32 ``[C, (G,) 1, n]``.
        channels: N, at most C·n.
    """

    codes: ir.Value
    scale: ir.Value
    channels: int

    def __post_init__(self) -> None:
        *groups, width, self.block = (int(dim) for dim in _tensor(self.codes).shape.numpy()[1:])
        self.shape = (self.channels, width * int(np.prod(groups, dtype=np.int64)))
        self.initializers = (self.codes, *leaves(self.scale))

    def rows(self, start: int, stop: int) -> Rows:
        first, last = start // self.block, -(-stop // self.block)
        codes = read(self.codes, first, last)
        scale = np.broadcast_to(evaluate(self.scale)[first:last], codes.shape)
        codes, steps = (self._by_channel(array)[start - first * self.block :] for array in (codes, scale))
        codes, steps = codes[: stop - start], steps[: stop - start]
        return codes * steps, np.abs(steps), np.abs(codes) >= 127

    def _by_channel(self, array: np.ndarray) -> np.ndarray:
        """float32 ``[c·n, K]``."""
        channels = np.moveaxis(array, -1, 1)
        return np.ascontiguousarray(channels, np.float32).reshape(-1, self.shape[1])


def matrix_of(node: ir.Node) -> Stored | str | None:
    """W ``[N, K]`` of a product or table of a lookup; why it cannot be told; None where a node is neither."""
    kind = node.op_type
    if kind == "MatMulNBits":
        return _blocks(node, node.inputs[1], node.inputs[2], attribute(node, "K", 0), _shift_of_product(node))
    if kind == "GatherBlockQuantized":
        shape = _tensor(node.inputs[0]).shape.numpy() if _is_constant(node.inputs[0]) else ()
        columns = int(shape[1]) * attribute(node, "block_size", 0) if len(shape) == 3 else 0
        return _blocks(node, node.inputs[0], node.inputs[2], columns, _shift_of_lookup(node))
    if CHANNELS in node.metadata_props:
        return _column_blocks(node)
    if kind == "Gather":
        return _plain(node.inputs[0], turned=False)
    if kind in ("MatMul", "FusedMatMul", "Gemm") and len(node.inputs) > 1:
        turned = not attribute(node, "transB", 0)
        return _plain(node.inputs[1], turned=turned)
    return None


def _column_blocks(node: ir.Node) -> Stored | str:
    """What a product or a lookup of `calibration.dynamic` reads."""
    channels = int(node.metadata_props[CHANNELS])
    codes, scale = node.inputs[1], node.inputs[3] if node.op_type == "MatMulIntegerToFloat" else None
    if scale is None:  # Mul(Cast(Gather(Reshape(codes))), Unsqueeze(Gather(Reshape(scale))))
        codes = _under(node.inputs[0], "Reshape")
        cast = next((use.node for use in node.outputs[0].uses()), None)
        product = next((use.node for use in cast.outputs[0].uses()), None) if cast is not None else None
        scale = _under(product.inputs[1], "Unsqueeze", "Gather", "Reshape") if product is not None else None
    if codes is None or scale is None or not _is_constant(codes) or not _is_constant(scale):
        return "its codes or scales are kept in a way that is not known here"
    return ColumnBlocks(codes, scale, channels)


def _under(value: ir.Value | None, *op_types: str) -> ir.Value | None:
    """What lies under a chain of nodes, each the producer of the one before's first input."""
    for op_type in op_types:
        node = value.producer() if value is not None else None
        value = node.inputs[0] if node is not None and node.op_type == op_type else None
    return value


def vector_of(value: ir.Value | None) -> Plain | None:
    """A vector of floats ``[n]``."""
    found = _plain(value, turned=False)
    return found if isinstance(found, Plain) and len(found.shape) == 1 else None


def _plain(value: ir.Value | None, *, turned: bool) -> Stored | str | None:
    """A float initializer, under casts and turns; or codes of channels under a DequantizeLinear."""
    while value is not None and not _is_constant(value):
        node = value.producer()
        if node is None or not node.inputs:
            return None
        if node.op_type == "Transpose":
            turned = not turned
        elif node.op_type == "DequantizeLinear":
            codes, scale = node.inputs[:2]
            whole = len(node.inputs) == 2 and attribute(node, "axis", 1) == 1 and turned
            if codes is None or scale is None or not whole or not _is_constant(codes):
                return "it is dequantized in a way that is not known here"
            return Channels(codes, scale)
        elif node.op_type not in ("Cast", "Identity"):
            return None
        value = node.inputs[0]
    if value is None or not _tensor(value).dtype.is_floating_point():
        return None
    return Plain(value, turned)


def _blocks(
    node: ir.Node, codes: ir.Value | None, scale: ir.Value | None, columns: int, shift: ir.Value | None
) -> Stored | str:
    plain = codes is not None and scale is not None and _is_constant(codes)
    extra = [value for value in node.inputs[3:5] if value is not None]
    if not plain or extra or (_tensor(codes).dtype != ir.DataType.UINT8) or can_evaluate(scale) is False:
        return "its codes or scales are kept in a way that is not known here"
    assert codes is not None and scale is not None
    return Blocks(codes, scale, shift, attribute(node, "bits", 4), attribute(node, "block_size", 0), columns)


def _shift_of_product(node: ir.Node) -> ir.Value | None:
    """The shifts that a product's block sums are multiplied by beside it (`calibration.quantization.lowering`)."""
    for use in node.outputs[0].uses():
        other = use.node.inputs[1 - use.idx] if use.node.op_type == "Add" else None
        product = other.producer() if other is not None else None
        if product is not None and product.op_type == "FusedMatMul" and can_evaluate(product.inputs[1]):
            return product.inputs[1]
    return None


def _shift_of_lookup(node: ir.Node) -> ir.Value | None:
    for use in node.outputs[0].uses():
        other = use.node.inputs[1 - use.idx] if use.node.op_type == "Add" else None
        column = other.producer() if other is not None else None
        rows = column.inputs[0].producer() if column is not None and column.inputs[0] is not None else None
        if rows is not None and rows.op_type == "Gather" and can_evaluate(rows.inputs[0]):
            return rows.inputs[0]
    return None


# Constants ------------------------------------------------------------------------------------------------


def read(value: ir.Value, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Rows of an initializer, read from its file and not mapped."""
    tensor = _tensor(value)
    shape = [int(dim) for dim in tensor.shape.numpy()]
    stop = (shape[0] if shape else 1) if stop is None else stop
    if not isinstance(tensor, ir.ExternalTensor) or not shape:
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
    if _is_constant(value):
        return True
    node = value.producer()
    if node is None:
        return False
    known = node.op_type in _MOVES or node.op_type in _EVALUATED
    return known and all(can_evaluate(operand) for operand in node.inputs)


def evaluate(value: ir.Value) -> np.ndarray:
    """A small computed constant."""
    if _is_constant(value):
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
    if _is_constant(value):
        yield value
        return
    node = value.producer()
    for operand in node.inputs if node is not None else ():
        if operand is not None:
            yield from leaves(operand)


def _is_constant(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None and value.is_initializer()


def _tensor(value: ir.Value | None) -> ir.TensorProtocol:
    assert value is not None and value.const_value is not None
    return value.const_value
