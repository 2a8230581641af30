"""A quantized weight as graph initializers that are computed while the file is written.

One `QuantizedWeight` stands behind the codes, scales and minima of a weight. Each of its tensors streams itself into
the file chunk by chunk. Whichever of them a writer thread comes to first computes a chunk's scales; they are small, so
they are remembered, and the search is done once. Two threads that write codes and scales of one weight at the same time
share the search: codes go through the chunks forwards, scales backwards.

Once every tensor of the weight has been written its scales are forgotten; writing it again computes them
again.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal, Protocol, TypeAlias

import numpy as np
import onnx_ir as ir

from calibration.quantization import rtn
from calibration.quantization.pack import pack, packed_shape, unpack
from calibration.scheme import Grid
from exporter.block_codes import BlockFormat, Coded
from exporter.weights import Weight

CHUNK = 4 << 20
"""Bytes of float32 that are read and coded at once."""

Parameter: TypeAlias = Literal["scale", "minimum"]


class Coder(Protocol):
    """Gives rows of a weight in codes."""

    @property
    def format(self) -> BlockFormat: ...

    def coded(self, start: int, stop: int, scale: np.ndarray | None) -> Coded:
        """Rows ``[start, stop)``; ``scale`` is what an earlier call gave for them, where there was one."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Rounding:
    """Codes by round to nearest (`calibration.quantization.rtn`)."""

    weight: Weight
    grid: Grid
    name: str

    @property
    def format(self) -> BlockFormat:
        return self.grid.format

    def coded(self, start: int, stop: int, scale: np.ndarray | None) -> Coded:
        rows = self.weight.rows(start, stop)
        if scale is None:
            return rtn.quantize(rows, self.grid, self.name, start)
        return Coded(rtn.encode(rows, scale, self.grid), scale, None)


@dataclasses.dataclass(frozen=True, eq=False)
class Filed:
    """Codes that were chosen before, packed, with their scales, in files of their own.

    Attributes:
        shape: of the weight, ``(N, K)``.
        stem: of the files ``….codes`` and ``….scale``.
    """

    format: BlockFormat
    shape: tuple[int, int]
    stem: Path

    def clear(self) -> None:
        """Take away what is there, of a run that was killed."""
        for suffix in (".codes", ".scale"):
            self.stem.with_name(self.stem.name + suffix).unlink(missing_ok=True)

    def append(self, coded: Coded) -> None:
        """Add the next rows."""
        for suffix, array in (
            (".codes", pack(coded.codes, self.format.bits, self.format.block)),
            (".scale", coded.scale),
        ):
            with self.stem.with_name(self.stem.name + suffix).open("ab") as file:
                file.write(np.ascontiguousarray(array).data)

    def coded(self, start: int, stop: int, scale: np.ndarray | None) -> Coded:
        _, blocks, width = packed_shape(*self.shape, self.format.bits, self.format.block)
        packed = self._rows(".codes", np.dtype(np.uint8), start, stop, blocks * width)
        scale = self._rows(".scale", np.dtype(self.format.scale_dtype), start, stop, blocks)
        codes = unpack(packed.reshape(stop - start, blocks, width), self.format.bits, self.shape[1])
        return Coded(codes, scale, None)

    def _rows(self, suffix: str, dtype: np.dtype[Any], start: int, stop: int, width: int) -> np.ndarray:
        file = self.stem.with_name(self.stem.name + suffix)
        offset = start * width * dtype.itemsize
        return np.fromfile(file, dtype, (stop - start) * width, offset=offset).reshape(-1, width)


@dataclasses.dataclass(frozen=True, eq=False)
class Keeping:
    """The source's own codes."""

    weight: Weight
    format: BlockFormat

    def coded(self, start: int, stop: int, scale: np.ndarray | None) -> Coded:
        return self.weight.coded(start, stop)


class QuantizedWeight:
    """A weight ``[N, K]`` of which a coder gives the rows in codes. Threads may share one.

    Attributes:
        name: stem of its tensors' names.
        shape: ``(N, K)``.
        format: of the codes.
    """

    def __init__(self, name: str, shape: tuple[int, int], coder: Coder, chunk: int = CHUNK) -> None:
        self.name = name
        self.shape = shape
        self.format = coder.format
        self._coder = coder
        rows = max(1, chunk // (4 * shape[1]))
        self._chunks = [(at, min(at + rows, shape[0])) for at in range(0, shape[0], rows)]
        self._locks = [threading.Lock() for _ in self._chunks]
        self._known: dict[int, Coded] = {}
        self._written: set[str] = set()

    @property
    def parts(self) -> tuple[str, ...]:
        """What there is to write: codes, scale and, where blocks have one, minimum."""
        return ("codes", "scale", "minimum") if self.format.has_minimum else ("codes", "scale")

    @property
    def scale_shape(self) -> tuple[int, int]:
        """``(N, ⌈K/block⌉)``"""
        return self.shape[0], -(-self.shape[1] // self.format.block)

    def packed(self) -> Iterator[np.ndarray]:
        """The packed codes (`calibration.quantization.pack`), chunk by chunk."""
        for i, (start, stop) in enumerate(self._chunks):
            with self._locks[i]:
                known = self._known.get(i)
                coded = self._coder.coded(start, stop, known.scale if known else None)
                if known is None:
                    self._remember(i, coded)
            yield pack(coded.codes, self.format.bits, self.format.block)

    def parameter(self, which: Parameter) -> np.ndarray:
        """All scales or minima, ``[N, ⌈K/block⌉]``, in the format's dtype."""
        out = np.empty(self.scale_shape, self.format.scale_dtype)
        for i, (start, stop) in reversed(list(enumerate(self._chunks))):
            with self._locks[i]:
                known = self._known.get(i) or self._remember(i, self._coder.coded(start, stop, None))
            out[start:stop] = known.scale if which == "scale" else known.minimum
        return out

    def written(self, part: str) -> None:
        """Note that a part is in the file; after the last one the scales are forgotten."""
        self._written.add(part)
        if self._written.issuperset(self.parts):
            self._written = set()
            self._known = {}

    def _remember(self, i: int, coded: Coded) -> Coded:
        """Keep a chunk's scales and minima, without its codes."""
        dtype = self.format.scale_dtype
        minimum = None if coded.minimum is None else coded.minimum.astype(dtype)
        self._known[i] = Coded(np.empty((0, 0), np.uint8), coded.scale.astype(dtype), minimum)
        return self._known[i]


class _Streamed(ir.LazyTensor):
    """What the tensors of a quantized weight have in common."""

    def __init__(
        self, weight: QuantizedWeight, part: str, dtype: ir.DataType, shape: tuple[int, ...]
    ) -> None:
        super().__init__(self._whole, dtype, ir.Shape(shape), name=f"{weight.name}.{part}")
        self.weight = weight
        self.part = part

    def _whole(self) -> ir.TensorProtocol:
        return ir.tensor(self.numpy(), name=self.name)

    def numpy(self) -> np.ndarray:
        """The whole tensor in memory."""
        return np.concatenate(list(self._pieces()))

    def tobytes(self) -> bytes:
        return b"".join(piece.tobytes() for piece in self._pieces())

    def tofile(self, file: IO[bytes]) -> None:
        """Compute the tensor piece by piece into a file."""
        for piece in self._pieces():
            file.write(piece.data.cast("B"))
        self.weight.written(self.part)

    def _pieces(self) -> Iterator[np.ndarray]:
        raise NotImplementedError


class CodesTensor(_Streamed):
    """Packed codes, uint8 ``[N, ⌈K/block⌉, block·bits/8]``."""

    def __init__(self, weight: QuantizedWeight) -> None:
        form = weight.format
        super().__init__(
            weight, "codes", ir.DataType.UINT8, packed_shape(*weight.shape, form.bits, form.block)
        )

    def _pieces(self) -> Iterator[np.ndarray]:
        yield from self.weight.packed()


class ParameterTensor(_Streamed):
    """Scales or minima of blocks, ``[N, ⌈K/block⌉]``, float16 or float32."""

    def __init__(self, weight: QuantizedWeight, which: Parameter) -> None:
        dtype = ir.DataType.from_numpy(np.dtype(weight.format.scale_dtype))
        super().__init__(weight, which, dtype, weight.scale_shape)
        self._which = which

    def _pieces(self) -> Iterator[np.ndarray]:
        yield self.weight.parameter(self._which)
