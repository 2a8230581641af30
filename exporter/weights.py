"""Weights as expressions: read when written, a piece of rows at a time.

A `Weight` knows its shape and can produce any range of its rows as float32. Packing QKV, splitting a fused
projection, undoing a permutation or adding 1 to a norm's gain builds a new expression and reads nothing. What
is finally read is read once, into a buffer of at most `PIECE` bytes (or one row), so peak memory follows the
largest piece and not the model.

Linear maps are kept as checkpoints keep them, ``[out, in]``: rows are output channels, and every quantizer
works on whole rows. `WeightTensor` turns an expression into an `onnx_ir` tensor, transposed where ONNX's
MatMul wants ``[in, out]``.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from exporter.errors import OnnxGptError, rejected, unsupported

PIECE = 32 << 20
"""Bytes of float32 read at once when a tensor is streamed."""

SHORTEST_RUN = 4096
"""Bytes of a row below which it is faster to read whole rows than a run of bytes from each."""


@dataclasses.dataclass(frozen=True)
class BlockFormat:
    """How a source already quantized a weight, in blocks along a row.

    ``w = scale · code + minimum`` where blocks have a minimum (Q4_1, most k-quants), and
    ``w = scale · (code − 2^(bits−1))`` where they have none. The minimum is the source's own and not the
    value at the middle code: that one, ``minimum + 2^(bits−1) · scale``, is not exact in the source's type.

    Attributes:
        bits: width in which every code fits unsigned, 4 or 8.
        block: columns that share a scale.
        has_minimum: whether blocks have a minimum.
        scale_dtype: smallest float type that holds scales and minima exactly, ``float16`` or ``float32``.
    """

    bits: int
    block: int
    has_minimum: bool
    scale_dtype: str


@dataclasses.dataclass(frozen=True)
class Coded:
    """Rows in the source's own quantization. R rows, K columns.

    Attributes:
        codes: uint8 ``[R, K]``, one code an element, unpacked.
        scale: ``[R, ⌈K/block⌉]`` in the format's ``scale_dtype``.
        minimum: ``[R, ⌈K/block⌉]`` in the format's ``scale_dtype``, or None.
    """

    codes: np.ndarray
    scale: np.ndarray
    minimum: np.ndarray | None

    def values(self, form: BlockFormat) -> np.ndarray:
        """What the codes are worth in the format, float32 ``[R, K]``; every block of a row is whole."""
        values = self.codes.astype(np.float32)
        blocks = values.reshape(*self.scale.shape, form.block)
        if self.minimum is None:
            blocks -= np.float32(1 << (form.bits - 1))
        blocks *= self.scale.astype(np.float32)[..., None]
        if self.minimum is not None:
            blocks += self.minimum.astype(np.float32)[..., None]
        return values


class Weight(abc.ABC):
    """A float tensor that has not been read yet."""

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, ...]: ...

    @abc.abstractmethod
    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows ``[start, stop)`` as float32, shape ``[stop − start, *shape[1:]]``."""

    def columns(self, start: int, stop: int) -> np.ndarray:
        """Columns ``[start, stop)`` of a matrix as float32, shape ``[rows, stop − start]``."""
        out = np.empty((self.shape[0], stop - start), np.float32)
        for a, b in self.pieces():
            out[a:b] = self.rows(a, b)[:, start:stop]
        return out

    def read(self) -> np.ndarray:
        """The whole tensor as float32."""
        return self.rows(0, self.shape[0])

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
        for start in range(0, self.shape[0], step):
            yield start, min(start + step, self.shape[0])


@dataclasses.dataclass(frozen=True, eq=False)
class Array(Weight):
    """A weight already in memory."""

    array: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def rows(self, start: int, stop: int) -> np.ndarray:
        return np.ascontiguousarray(self.array[start:stop], dtype=np.float32)


STORED_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


def require_finite(array: np.ndarray, name: str, first_row: int = 0) -> np.ndarray:
    """The float array itself, where it holds neither NaN nor infinity. Whatever reads a file calls this.

    A sum is finite only if all its terms are. It costs 0.17 ms a million elements, a sixth of widening bf16.

    Args:
        name: the tensor that ``array`` is rows of.
        first_row: which row of the tensor ``array[0]`` is.

    Raises:
        OnnxGptError: ``weights-not-finite``, naming the tensor and the index of the first bad value.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        total = array.sum()
    if np.isfinite(total) or np.isfinite(array).all():  # finite terms may still overflow their sum
        return array
    index = [int(i) for i in np.argwhere(~np.isfinite(array))[0]]
    value = array[tuple(index)]
    index[:1] = [first_row + i for i in index[:1]]
    raise rejected(
        "weights-not-finite",
        f"{name}{index} is {value}",
        "use a checkpoint from before the training diverged, or download the file again",
    )


@dataclasses.dataclass(frozen=True)
class Stored(Weight):
    """A row-major tensor in a file. Read with plain reads: pages of a mapped file would count as our memory.

    Attributes:
        offset: bytes from the start of the file.
        dtype: a key of `STORED_DTYPES`.
        name: what the tensor is called in an error.
    """

    path: Path
    offset: int
    dtype: str
    stored_shape: tuple[int, ...]
    name: str = "a tensor"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored_shape

    def rows(self, start: int, stop: int) -> np.ndarray:
        dtype = STORED_DTYPES[self.dtype]
        width = int(np.prod(self.shape[1:], dtype=np.int64))
        with self.path.open("rb") as file:
            flat = np.fromfile(
                file, dtype, count=(stop - start) * width, offset=self.offset + start * width * dtype.itemsize
            )
        if flat.size != (stop - start) * width:
            raise self._ends()
        rows = _to_float32(flat).reshape(stop - start, *self.shape[1:])
        return require_finite(rows, self.name, start)

    def columns(self, start: int, stop: int) -> np.ndarray:
        """A run of bytes from each row, where rows are long; else what other weights do."""
        dtype, (rows, width) = STORED_DTYPES[self.dtype], self.stored_shape
        run = (stop - start) * dtype.itemsize
        if run < SHORTEST_RUN or stop - start == width:
            return super().columns(start, stop)
        flat = np.empty((rows, stop - start), dtype)
        with self.path.open("rb") as file:
            for row in range(rows):
                file.seek(self.offset + (row * width + start) * dtype.itemsize)
                if file.readinto(flat[row].view(np.uint8).data) != run:
                    raise self._ends()
        values = _to_float32(flat)
        with np.errstate(over="ignore", invalid="ignore"):
            finite = bool(np.isfinite(values.sum()))
        return values if finite else super().columns(start, stop)  # which names the place

    def _ends(self) -> OnnxGptError:
        return rejected(
            "weights-corrupt",
            f"{str(self.path)!r} ends inside {self.name}: it has changed since it was opened",
            "let nothing write to the file meanwhile",
        )


def _to_float32(array: np.ndarray) -> np.ndarray:
    if array.dtype == ml_dtypes.bfloat16:
        # a bfloat16 is the upper half of a float32; ml_dtypes' own cast is slower
        wide = array.view(np.uint16).astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    with np.errstate(over="ignore"):  # a double beyond float32 becomes infinite, and is then refused by name
        return array.astype(np.float32, copy=False)


@dataclasses.dataclass(frozen=True)
class NotFloat(Weight):
    """A stored tensor that is not of floats: a causal mask, a position table, or somebody's quantized codes.

    Checkpoints carry masks that no family uses. Where a family wants the tensor, `exporter.match` refuses it.
    """

    name: str
    dtype: str
    stored_shape: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored_shape

    def rows(self, start: int, stop: int) -> np.ndarray:
        raise unsupported(
            "weights-dtype",
            f"{self.name} is stored as {self.dtype}, which is not a float type",
            "use a checkpoint in bf16, fp16 or fp32",
        )


@dataclasses.dataclass(frozen=True)
class Unread(Weight):
    """A weight of which nothing but the shape is known: for plans, and for proofs that nobody reads one."""

    dims: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.dims

    def rows(self, start: int, stop: int) -> np.ndarray:
        raise AssertionError("a weight was read of which only the shape is known")


@dataclasses.dataclass(frozen=True)
class Zeros(Weight):
    """A tensor that the source leaves out because it is zero: the biases of a model trained without them."""

    zero_shape: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.zero_shape

    def rows(self, start: int, stop: int) -> np.ndarray:
        return np.zeros((stop - start, *self.shape[1:]), np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class Rows(Weight):
    """Some rows of another weight, as ``(start, stop)`` ranges in the order wanted."""

    base: Weight
    ranges: tuple[tuple[int, int], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(stop - start for start, stop in self.ranges), *self.base.shape[1:])

    def _within(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        at = 0
        for first, last in self.ranges:
            lo, hi = max(start, at), min(stop, at + last - first)
            if lo < hi:
                yield first + lo - at, first + hi - at
            at += last - first

    def rows(self, start: int, stop: int) -> np.ndarray:
        return np.concatenate([self.base.rows(a, b) for a, b in self._within(start, stop)])

    @property
    def format(self) -> BlockFormat | None:
        return self.base.format

    def coded(self, start: int, stop: int) -> Coded:
        return _join([self.base.coded(a, b) for a, b in self._within(start, stop)])


@dataclasses.dataclass(frozen=True, eq=False)
class Permuted(Weight):
    """Another weight's rows reordered: row i is ``base[order[i]]`` (llama.cpp's rotary layout undone)."""

    base: Weight
    order: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.order), *self.base.shape[1:])

    def _span(self, start: int, stop: int) -> tuple[int, int, np.ndarray]:
        wanted = self.order[start:stop]
        lo = int(wanted.min())
        return lo, int(wanted.max()) + 1, wanted - lo

    def rows(self, start: int, stop: int) -> np.ndarray:
        lo, hi, index = self._span(start, stop)
        rows: np.ndarray = self.base.rows(lo, hi)[index]
        return rows

    @property
    def format(self) -> BlockFormat | None:
        return self.base.format

    def coded(self, start: int, stop: int) -> Coded:
        lo, hi, index = self._span(start, stop)
        read = self.base.coded(lo, hi)
        return Coded(
            read.codes[index], read.scale[index], None if read.minimum is None else read.minimum[index]
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Stack(Weight):
    """Weights one under the other: packed QKV, gate over up."""

    parts: tuple[Weight, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])

    def _within(self, start: int, stop: int) -> Iterator[tuple[Weight, int, int]]:
        at = 0
        for part in self.parts:
            lo, hi = max(start, at), min(stop, at + part.shape[0])
            if lo < hi:
                yield part, lo - at, hi - at
            at += part.shape[0]

    def rows(self, start: int, stop: int) -> np.ndarray:
        return np.concatenate([part.rows(a, b) for part, a, b in self._within(start, stop)])

    @property
    def format(self) -> BlockFormat | None:
        first = self.parts[0].format
        return first if all(part.format == first for part in self.parts) else None

    def coded(self, start: int, stop: int) -> Coded:
        return _join([part.coded(a, b) for part, a, b in self._within(start, stop)])


def _join(parts: list[Coded]) -> Coded:
    minima = [part.minimum for part in parts if part.minimum is not None]
    return Coded(
        np.concatenate([part.codes for part in parts]),
        np.concatenate([part.scale for part in parts]),
        np.concatenate(minima) if minima else None,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Transposed(Weight):
    """A matrix stored the other way round (GPT-2's Conv1D keeps ``[in, out]``)."""

    base: Weight

    @property
    def shape(self) -> tuple[int, ...]:
        rows, columns = self.base.shape
        return columns, rows

    def rows(self, start: int, stop: int) -> np.ndarray:
        return np.ascontiguousarray(self.base.columns(start, stop).T)

    def columns(self, start: int, stop: int) -> np.ndarray:
        return np.ascontiguousarray(self.base.rows(start, stop).T)


def transposed(weight: Weight) -> Weight:
    """A matrix the other way round; twice is not at all."""
    return weight.base if isinstance(weight, Transposed) else Transposed(weight)


@dataclasses.dataclass(frozen=True, eq=False)
class Plus(Weight):
    """Another weight with a constant added: the 1 in Gemma's ``1 + γ``."""

    base: Weight
    constant: float

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    def rows(self, start: int, stop: int) -> np.ndarray:
        return self.base.rows(start, stop) + np.float32(self.constant)


def plus(weight: Weight, constant: float) -> Weight:
    """A constant added; one that was subtracted before is taken back, where adding it would round twice."""
    if isinstance(weight, Plus) and weight.constant == -constant:
        return weight.base
    return Plus(weight, constant)


@dataclasses.dataclass(frozen=True, eq=False)
class Times(Weight):
    """Another weight multiplied by a constant: Granite's multipliers. Codes stay; their scales are multiplied."""

    base: Weight
    constant: float

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    def rows(self, start: int, stop: int) -> np.ndarray:
        return self.base.rows(start, stop) * np.float32(self.constant)

    @property
    def format(self) -> BlockFormat | None:
        own = self.base.format
        return None if own is None else dataclasses.replace(own, scale_dtype="float32")

    def coded(self, start: int, stop: int) -> Coded:
        own, constant = self.base.coded(start, stop), np.float32(self.constant)
        minimum = None if own.minimum is None else own.minimum.astype(np.float32) * constant
        return Coded(own.codes, own.scale.astype(np.float32) * constant, minimum)


def times(weight: Weight, constant: float) -> Weight:
    """Multiplied by a constant; what was divided by it before is taken back, where multiplying would round twice."""
    if isinstance(weight, Times) and math.isclose(weight.constant * constant, 1.0, rel_tol=1e-12):
        return weight.base
    return Times(weight, constant)


class WeightTensor(ir.LazyTensor):
    """A weight as a float32 initializer of the graph, read only when the file is written.

    Args:
        weight: the expression, ``[out, in]`` for a linear map, ``[n]`` for a vector.
        transpose: give the graph ``[in, out]``, as MatMul wants it.
    """

    def __init__(self, name: str, weight: Weight, *, transpose: bool = False) -> None:
        shape = ir.Shape(weight.shape[::-1] if transpose else weight.shape)
        super().__init__(self._whole, ir.DataType.FLOAT, shape, name=name)
        self.weight = weight
        self.transpose = transpose

    def _whole(self) -> ir.Tensor[np.ndarray]:
        array = self.weight.read()
        return ir.Tensor(np.ascontiguousarray(array.T) if self.transpose else array, name=self.name)

    def tofile(self, file: IO[bytes]) -> None:
        """Stream the tensor: by rows as it lies, or by columns of the whole matrix when it is transposed."""
        if not self.transpose or isinstance(self.weight, Transposed):
            lies = transposed(self.weight) if self.transpose else self.weight
            for start, stop in lies.pieces():
                file.write(lies.rows(start, stop).data.cast("B"))
            return
        whole = self.weight.read()
        step = max(1, (4 << 20) // (4 * whole.shape[0]))
        for start in range(0, whole.shape[1], step):
            file.write(np.ascontiguousarray(whole[:, start : start + step].T).data.cast("B"))
