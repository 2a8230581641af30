"""Weights as expressions: read when written, a piece of rows at a time.

A `Weight` knows its shape and can produce any range of its rows as float32. Packing QKV, splitting a fused
projection, undoing a permutation or adding 1 to a norm's gain builds a new expression
(`exporter.weight_expressions`) and reads nothing. What is finally read is read once (`exporter.stored_weights`),
into a buffer of at most `PIECE` bytes (or one row), so peak memory follows the largest piece and not the model.

Linear maps are kept as checkpoints keep them, ``[out, in]``: rows are output channels, and every quantizer
works on whole rows. `exporter.weight_tensor` turns an expression into an `onnx_ir` tensor, transposed where ONNX's
MatMul wants ``[in, out]``.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterator

import numpy as np

from exporter.block_codes import BlockFormat, Coded

PIECE = 32 << 20
"""Bytes of float32 read at once when a tensor is streamed."""


class Weight(abc.ABC):
    """A float tensor that has not been read yet."""

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, ...]: ...

    @abc.abstractmethod
    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows ``[start, stop)`` as float32, shape ``[stop − start, *shape[1:]]``; a scalar is one row, ``[1]``."""

    def columns(self, start: int, stop: int) -> np.ndarray:
        """Columns ``[start, stop)`` of a matrix as float32, shape ``[rows, stop − start]``."""
        out = np.empty((self.shape[0], stop - start), np.float32)
        for a, b in self.pieces():
            out[a:b] = self.rows(a, b)[:, start:stop]
        return out

    def read(self) -> np.ndarray:
        """The whole tensor as float32."""
        return self.rows(0, self.shape[0]) if self.shape else self.rows(0, 1).reshape(())

    @property
    def format(self) -> BlockFormat | None:
        """The source's own quantization, where every row has the same one."""
        return None

    def coded(self, start: int, stop: int) -> Coded:
        """Rows ``[start, stop)`` as the source quantized them. Only where `format` is not None."""
        raise NotImplementedError(f"{type(self).__name__} has no codes of its own")

    def pieces(self, nbytes: int = PIECE) -> Iterator[tuple[int, int]]:
        """Row ranges that cover the tensor, each at most ``nbytes`` of float32 (or one row)."""
        row = 4 * int(np.prod(self.shape[1:], dtype=np.int64))
        step = max(1, nbytes // max(row, 1))
        count = self.shape[0] if self.shape else 1
        for start in range(0, count, step):
            yield start, min(start + step, count)


@dataclasses.dataclass(frozen=True, eq=False)
class Array(Weight):
    """A weight already in memory."""

    array: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def rows(self, start: int, stop: int) -> np.ndarray:
        return np.ascontiguousarray(np.atleast_1d(self.array)[start:stop], dtype=np.float32)


@dataclasses.dataclass(frozen=True)
class Zeros(Weight):
    """A tensor that the source leaves out because it is zero: the biases of a model trained without them."""

    zero_shape: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.zero_shape

    def rows(self, start: int, stop: int) -> np.ndarray:
        return np.zeros((stop - start, *self.shape[1:]), np.float32)


@dataclasses.dataclass(frozen=True)
class Unread(Weight):
    """A weight of which nothing but the shape is known: for plans, and for proofs that nobody reads one."""

    dims: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.dims

    def rows(self, start: int, stop: int) -> np.ndarray:
        raise AssertionError("a weight was read of which only the shape is known")
