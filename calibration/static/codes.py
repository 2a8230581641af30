"""A matrix as int8 with one scale for each output channel, the way onnxruntime's integer products want it."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Protocol

import numpy as np
import onnx_ir as ir

from calibration.int8 import scale_of
from exporter.weights import Weight


class ChannelCodes(Protocol):
    """W ``[N, K]`` as ``s[n] · code[n, k]``.

    Attributes:
        codes: int8 tensor ``[K, N]``, transposed for MatMul.
        scale: float32 tensor ``[N]``, none below zero.
    """

    @property
    def codes(self) -> ir.TensorProtocol: ...

    @property
    def scale(self) -> ir.TensorProtocol: ...


class RoundedCodes:
    """Rounded to nearest with ``s[n] = max |W[n]| / 127``; read when the file is written, by rows."""

    def __init__(self, name: str, weight: Weight) -> None:
        self.weight = weight
        channels, width = weight.shape
        self.codes: ir.TensorProtocol = _Codes(self, f"{name}.codes", (width, channels))
        self.scale: ir.TensorProtocol = ir.LazyTensor(
            lambda: ir.tensor(self._scales(), name=f"{name}.scale"),
            ir.DataType.FLOAT,
            ir.Shape([channels]),
            name=f"{name}.scale",
        )

    def _scales(self) -> np.ndarray:
        return np.concatenate([_scale_of(self.weight.rows(a, b)) for a, b in self.weight.pieces()])

    def transposed_codes(self) -> np.ndarray:
        """int8 ``[K, N]``."""
        channels, width = self.weight.shape
        out = np.empty((width, channels), np.int8)
        for a, b in self.weight.pieces():
            rows = self.weight.rows(a, b)
            out[:, a:b] = np.rint(rows / _scale_of(rows)[:, None]).T
        return out


class ChosenCodes:
    """Codes that were chosen before, in files of their own.

    Args:
        shape: of the weight, ``(N, K)``.
        stem: of the files ``….codes`` and ``….scale``.
    """

    def __init__(self, name: str, shape: tuple[int, int], stem: Path) -> None:
        self.shape, self.stem = shape, stem
        channels, width = shape
        self.codes: ir.TensorProtocol = _Codes(self, f"{name}.codes", (width, channels))
        self.scale: ir.TensorProtocol = ir.LazyTensor(
            lambda: ir.tensor(np.fromfile(self._file("scale"), np.float32), name=f"{name}.scale"),
            ir.DataType.FLOAT,
            ir.Shape([channels]),
            name=f"{name}.scale",
        )

    def clear(self) -> None:
        """Take away what is there, of a run that was killed."""
        for which in ("codes", "scale"):
            self._file(which).unlink(missing_ok=True)

    def append(self, codes: np.ndarray, scale: np.ndarray) -> None:
        """Add the next rows: int8 ``[R, K]`` and float32 ``[R]``."""
        for which, array in (("codes", codes), ("scale", scale)):
            with self._file(which).open("ab") as file:
                file.write(np.ascontiguousarray(array).data.cast("B"))

    def transposed_codes(self) -> np.ndarray:
        """int8 ``[K, N]``."""
        return np.ascontiguousarray(np.fromfile(self._file("codes"), np.int8).reshape(self.shape).T)

    def _file(self, which: str) -> Path:
        return self.stem.with_name(f"{self.stem.name}.{which}")


def nearest(rows: np.ndarray) -> np.ndarray:
    """What rounded codes are worth, float32 ``[N, K]``."""
    scale = _scale_of(rows)[:, None]
    worth: np.ndarray = np.rint(rows / scale) * scale
    return worth


def _scale_of(rows: np.ndarray) -> np.ndarray:
    return scale_of(np.abs(rows).max(axis=1))


class _Transposed(Protocol):
    def transposed_codes(self) -> np.ndarray: ...


class _Codes(ir.LazyTensor):
    """Written without a second copy."""

    def __init__(self, owner: _Transposed, name: str, shape: tuple[int, int]) -> None:
        super().__init__(self._whole, ir.DataType.INT8, ir.Shape(shape), name=name)
        self._owner = owner

    def _whole(self) -> ir.TensorProtocol:
        return ir.tensor(self._owner.transposed_codes(), name=self.name)

    def tofile(self, file: IO[bytes]) -> None:
        file.write(self._owner.transposed_codes().data.cast("B"))
