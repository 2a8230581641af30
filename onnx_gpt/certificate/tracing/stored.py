"""Weights as a file has them: floats, codes in blocks, codes of channels; given as float32 by rows."""

from __future__ import annotations

import abc
import dataclasses

import numpy as np
import onnx_ir as ir

from calibration.quantization.pack import unpack
from onnx_gpt.certificate.tracing.constants import evaluate, leaves, read, tensor_of

Rows = tuple[np.ndarray, np.ndarray | None, np.ndarray | None]
"""Values float32 ``[R, …]``; for codes also the size of each one's step, and whether it is at an end of its range."""


class Stored(abc.ABC):
    """One weight of the file.

    Attributes:
        initializers: values that it is made of.
        grid: bits of a code, and columns of a row that share a step; None of floats.
    """

    shape: tuple[int, ...]
    initializers: tuple[ir.Value, ...]
    grid: tuple[int, int] | None = None

    @abc.abstractmethod
    def rows(self, start: int, stop: int) -> Rows:
        """Rows ``[start, stop)``."""


@dataclasses.dataclass
class Plain(Stored):
    """Floats. ``turned`` where the file has ``[K, N]`` for ``[N, K]``."""

    value: ir.Value
    turned: bool

    def __post_init__(self) -> None:
        shape = tuple(int(dim) for dim in tensor_of(self.value).shape.numpy())
        self.shape = shape[::-1] if self.turned else shape
        self.initializers = (self.value,)

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
        self.shape = (int(tensor_of(self.codes).shape.numpy()[0]), self.columns)
        values = [self.scale] if self.shift is None else [self.scale, self.shift]
        self.initializers = (self.codes, *(leaf for value in values for leaf in leaves(value)))
        self.grid = (self.bits, self.block)
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
class Dequantized(Stored):
    """Signed codes under a DequantizeLinear without zero points.

    Attributes:
        codes: int4 or int8, ``[N, K]``, or ``[K, N]`` where it is ``turned``.
        scale: a constant, in blocks of ``block`` along ``axis``, or where that is 0 one for each index of ``axis``.
    """

    codes: ir.Value
    scale: ir.Value
    axis: int
    block: int
    turned: bool

    def __post_init__(self) -> None:
        shape = tuple(int(dim) for dim in tensor_of(self.codes).shape.numpy())
        self.shape = shape[::-1] if self.turned else shape
        self.initializers = (self.codes, *leaves(self.scale))
        self.grid = (tensor_of(self.codes).dtype.bitwidth, self.block or self.shape[1])

    def rows(self, start: int, stop: int) -> Rows:
        codes = read(self.codes)[:, start:stop].T if self.turned else read(self.codes, start, stop)
        codes = codes.astype(np.int8)
        scale = self._steps(start, stop)
        largest = (1 << (tensor_of(self.codes).dtype.bitwidth - 1)) - 1
        return codes.astype(np.float32) * scale, np.abs(scale), np.abs(codes.astype(np.int16)) >= largest

    def _steps(self, start: int, stop: int) -> np.ndarray:
        """``[R, K]``"""
        scale = evaluate(self.scale).astype(np.float32)
        rows, columns = (1, 0) if self.turned else (0, 1)
        if not self.block:
            along_rows = self.axis == rows
            scale = np.broadcast_to(scale.reshape(-1), (self.shape[0 if along_rows else 1],))
            steps = scale[start:stop, None] if along_rows else scale[None]
            return np.broadcast_to(steps, (stop - start, self.shape[1]))
        lying = scale.T if self.turned else scale
        if self.axis == columns:
            return np.repeat(lying[start:stop], self.block, axis=1)[:, : self.shape[1]]
        return np.repeat(lying, self.block, axis=0)[start:stop]


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
        *groups, width, self.block = (int(dim) for dim in tensor_of(self.codes).shape.numpy()[1:])
        self.shape = (self.channels, width * int(np.prod(groups, dtype=np.int64)))
        self.initializers = (self.codes, *leaves(self.scale))
        self.grid = (8, width)

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
