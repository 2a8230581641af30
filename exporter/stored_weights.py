"""Weights that lie in a file: where their numbers are, and the only place that reads them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from exporter.errors import OnnxGptError, rejected, unsupported
from exporter.weights import Weight

SHORTEST_RUN = 4096
"""Bytes of a row below which it is faster to read whole rows than a run of bytes from each."""

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
