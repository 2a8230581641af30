"""Quantized tensors of a GGUF file: its own codes, scales and minima, and the float rows that they make.

One short function unpacks a type: it takes blocks ``[N, bytes]`` and gives codes ``[N, elements]``, scales
``[N, S]`` and minima ``[N, S]`` or None, where S sub-blocks share a block. Layouts: ggml-common.h and
ggml-quants.c of ggml. The rows equal what ``gguf.quants.dequantize`` gives to the last bit (a test holds
that) and take half its time.

What a code means is `exporter.block_codes.BlockFormat`'s: ``scale · code + minimum``, or, where there are no
minima, ``scale · (code − 2^(bits−1))``. Codes of 2, 3, 5 or 6 bits come in the next wider of 4 and 8, shifted
so that the middle is in the middle.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Type

from exporter.block_codes import BlockFormat, Coded
from exporter.errors import rejected, unsupported
from exporter.gguf_format.reader import TensorEntry
from exporter.stored_weights import Stored, require_finite
from exporter.weights import Weight

Unpacked: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray | None]

FLOATS = (Type.F32, Type.F16, Type.BF16)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a type packs its blocks."""

    format: BlockFormat
    unpack: Callable[[np.ndarray], Unpacked]


def weight_of(path: Path, entry: TensorEntry) -> Weight:
    """A tensor of the file, not read yet.

    Raises:
        OnnxGptError: ``gguf-type-unsupported`` (exit 3) for a type that has no unpacking here.
    """
    if entry.type in FLOATS:
        return Stored(path, entry.offset, entry.type.name, entry.shape, entry.name)
    if entry.type not in LAYOUTS:
        known = ", ".join(type.name for type in (*FLOATS, *LAYOUTS))
        raise unsupported(
            "gguf-type-unsupported",
            f"{path.name}: tensor {entry.name!r} is of type {entry.type.name}, which is not implemented",
            f"use a file whose tensors are of the types {known}",
        )
    if len(entry.shape) != 2:
        raise rejected(
            "gguf-invalid",
            f"{path.name}: tensor {entry.name!r} is {entry.type.name} and has shape {list(entry.shape)}",
            "convert the model again: only matrices are quantized",
        )
    return Blocks(path, entry.offset, entry.type, (entry.shape[0], entry.shape[1]), entry.name)


@dataclasses.dataclass(frozen=True)
class Blocks(Weight):
    """A quantized matrix ``[R, K]``, whose rows are whole blocks. Read with plain reads, rows at a time."""

    path: Path
    offset: int
    type: Type
    stored_shape: tuple[int, int]
    name: str

    @property
    def shape(self) -> tuple[int, int]:
        return self.stored_shape

    @property
    def format(self) -> BlockFormat:
        return LAYOUTS[self.type].format

    def rows(self, start: int, stop: int) -> np.ndarray:
        return self.coded(start, stop).values(self.format)

    def coded(self, start: int, stop: int) -> Coded:
        blocks = self._bytes(start, stop).reshape(-1, GGML_QUANT_SIZES[self.type][1])
        with np.errstate(invalid="ignore"):
            codes, scale, minimum = LAYOUTS[self.type].unpack(blocks)
        shape = (stop - start, self.shape[1] // self.format.block)
        scale = require_finite(scale.reshape(shape), f"the scales of {self.name}", start)
        if minimum is not None:
            minimum = require_finite(minimum.reshape(shape), f"the minima of {self.name}", start)
        return Coded(codes.reshape(stop - start, self.shape[1]), scale, minimum)

    def _bytes(self, start: int, stop: int) -> np.ndarray:
        """Rows ``[start, stop)`` as stored, uint8 ``[stop − start, bytes of a row]``."""
        elements, nbytes = GGML_QUANT_SIZES[self.type]
        width = self.shape[1] // elements * nbytes
        with self.path.open("rb") as file:
            data = np.fromfile(
                file, np.uint8, count=(stop - start) * width, offset=self.offset + start * width
            )
        if data.size != (stop - start) * width:
            raise rejected(
                "weights-corrupt",
                f"{self.path.name} ends inside {self.name}: it has changed since it was opened",
                "let nothing write to the file meanwhile",
            )
        return data.reshape(stop - start, width)


def _half(blocks: np.ndarray, at: int) -> np.ndarray:
    """The float16 at a byte of each block, ``[N, 1]``."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2")


def _fields(packed: np.ndarray, bits: int, group: int) -> np.ndarray:
    """Fields of ``bits`` bits: of ``group`` neighbouring bytes the lowest, then the next ones, and so on.

    ``[N, P]`` bytes give ``[N, P · 8 / bits]`` numbers.
    """
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    fields = packed.reshape(len(packed), -1, 1, group) >> shifts
    return (fields & np.uint8((1 << bits) - 1)).reshape(len(packed), -1)


def _fifth_bits(blocks: np.ndarray, at: int) -> np.ndarray:
    """Bit 4 of each of 32 codes, from a 32-bit mask."""
    return np.unpackbits(blocks[:, at : at + 4], axis=1, bitorder="little") << np.uint8(4)


def _q4_0(blocks: np.ndarray) -> Unpacked:
    return _fields(blocks[:, 2:18], 4, 16), _half(blocks, 0), None


def _q4_1(blocks: np.ndarray) -> Unpacked:
    return _fields(blocks[:, 4:20], 4, 16), _half(blocks, 0), _half(blocks, 2)


def _q5_0(blocks: np.ndarray) -> Unpacked:
    codes = _fields(blocks[:, 6:22], 4, 16) | _fifth_bits(blocks, 2)
    return codes + np.uint8(128 - 16), _half(blocks, 0), None


def _q5_1(blocks: np.ndarray) -> Unpacked:
    return _fields(blocks[:, 8:24], 4, 16) | _fifth_bits(blocks, 4), _half(blocks, 0), _half(blocks, 2)


def _q8_0(blocks: np.ndarray) -> Unpacked:
    return blocks[:, 2:34] ^ np.uint8(128), _half(blocks, 0), None  # two's complement + 128


def _q2_k(blocks: np.ndarray) -> Unpacked:
    """16 sub-blocks of 16: a byte has a 4-bit scale, low, and a 4-bit minimum."""
    scales = blocks[:, :16]
    d, dmin = _half(blocks, 80).astype(np.float32), _half(blocks, 82).astype(np.float32)
    return _fields(blocks[:, 16:80], 2, 32), d * (scales & np.uint8(15)), -(dmin * (scales >> np.uint8(4)))


def _q3_k(blocks: np.ndarray) -> Unpacked:
    """16 sub-blocks of 16: 6-bit signed scales, codes −4 … 3 whose high bit is in a mask of its own."""
    codes = _fields(blocks[:, 32:96], 2, 32) | _fields(blocks[:, :32], 1, 32) << np.uint8(2)
    scales = _fields(blocks[:, 96:104], 4, 8) | _fields(blocks[:, 104:108], 2, 4) << np.uint8(4)
    scale = _half(blocks, 108).astype(np.float32) * (scales.astype(np.float32) - 32)
    return codes + np.uint8(8 - 4), scale, None


def _k_scales(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales and minima ``[N, 8]`` of Q4_K and Q5_K: 6 bits each in 12 bytes, the last four of both split."""
    low, middle, high = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    top, four, six = np.uint8(0x30), np.uint8(15), np.uint8(63)
    scale = np.concatenate([low & six, (high & four) | (low >> np.uint8(2) & top)], axis=1)
    minimum = np.concatenate([middle & six, (high >> np.uint8(4)) | (middle >> np.uint8(2) & top)], axis=1)
    d, dmin = _half(blocks, 0).astype(np.float32), _half(blocks, 2).astype(np.float32)
    return d * scale, -(dmin * minimum)


def _q4_k(blocks: np.ndarray) -> Unpacked:
    return _fields(blocks[:, 16:144], 4, 32), *_k_scales(blocks)


def _q5_k(blocks: np.ndarray) -> Unpacked:
    codes = _fields(blocks[:, 48:176], 4, 32) | _fields(blocks[:, 16:48], 1, 32) << np.uint8(4)
    return codes, *_k_scales(blocks)


def _q6_k(blocks: np.ndarray) -> Unpacked:
    """16 sub-blocks of 16: 8-bit signed scales, codes −32 … 31 in four low bits and two high ones."""
    codes = _fields(blocks[:, :128], 4, 64) | _fields(blocks[:, 128:192], 2, 32) << np.uint8(4)
    scale = _half(blocks, 208).astype(np.float32) * blocks[:, 192:208].view(np.int8)
    return codes + np.uint8(128 - 32), scale, None


LAYOUTS: Mapping[Type, Layout] = {
    Type.Q4_0: Layout(BlockFormat(4, 32, False, "float16"), _q4_0),
    Type.Q4_1: Layout(BlockFormat(4, 32, True, "float16"), _q4_1),
    Type.Q5_0: Layout(BlockFormat(8, 32, False, "float16"), _q5_0),
    Type.Q5_1: Layout(BlockFormat(8, 32, True, "float16"), _q5_1),
    Type.Q8_0: Layout(BlockFormat(8, 32, False, "float16"), _q8_0),
    Type.Q2_K: Layout(BlockFormat(4, 16, True, "float32"), _q2_k),
    Type.Q3_K: Layout(BlockFormat(4, 16, False, "float32"), _q3_k),
    Type.Q4_K: Layout(BlockFormat(4, 32, True, "float32"), _q4_k),
    Type.Q5_K: Layout(BlockFormat(8, 32, True, "float32"), _q5_k),
    Type.Q6_K: Layout(BlockFormat(8, 16, False, "float32"), _q6_k),
}
