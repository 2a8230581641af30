"""A matrix as int8 in narrow blocks of columns, the way integer kernels without a packed form of their own stream it.

onnxruntime's WebAssembly build copies each strip of a matrix before it multiplies, at every step. In a matrix
``[K, N]`` the rows of a strip lie N bytes apart, so that almost every line of it is fetched alone; in blocks
``[N/32, K, 32]`` a strip is one run of memory. SmolLM2's table at one token: 17 ms the first way, 3.3 ms the second.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

import numpy as np
import onnx_ir as ir

from calibration.int8 import scale_of
from exporter.weights import Weight

BLOCK = 32
"""Columns of a block: fewer leave the kernel's strips partly empty, more are slower to fetch."""
CHANNELS = "onnx_gpt.optimizing.channels"
"""Metadata of a node that reads blocks: N, which the blocks themselves round up."""


class BlockCodes:
    """W ``[N, K]`` as ``s[n, g] · code[n, k]``, read when the file is written, by rows; scales are found once.

    Attributes:
        blocks: C, blocks of `BLOCK` channels; the last is filled up with zeros.
        groups: G, runs of K/G columns with a scale of their own.
        codes: int8 tensor ``[C, G, K/G, BLOCK]``: channel n is column ``n mod BLOCK`` of block ``n div BLOCK``. G is
            left out where it is 1.
        scale: float32 tensor ``[C, G, 1, BLOCK]``, ``max |W[n, group]| / 127``.
    """

    def __init__(self, name: str, weight: Weight, groups: int = 1) -> None:
        self.weight, self.groups = weight, groups
        self._known: np.ndarray | None = None  # scales, once codes have been written
        channels, width = weight.shape
        self.blocks = -(-channels // BLOCK)
        inner = (groups,) if groups > 1 else ()
        self.codes: ir.TensorProtocol = _Codes(
            self, f"{name}.codes", (self.blocks, *inner, width // groups, BLOCK)
        )
        self.scale: ir.TensorProtocol = ir.LazyTensor(
            lambda: ir.tensor(self._scales().reshape(self.blocks, *inner, 1, BLOCK), name=f"{name}.scale"),
            ir.DataType.FLOAT,
            ir.Shape([self.blocks, *inner, 1, BLOCK]),
            name=f"{name}.scale",
        )

    def _scales(self) -> np.ndarray:
        """float32 ``[C, G, BLOCK]``."""
        if self._known is not None:
            return self._known
        scales = np.ones((self.blocks * BLOCK, self.groups), np.float32)
        for start, stop in self._ranges():
            scales[start:stop] = _scale_of(self._grouped(start, stop))
        return self._by_block(scales)

    def _by_block(self, scales: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(scales.reshape(self.blocks, BLOCK, self.groups).transpose(0, 2, 1))

    def pieces(self) -> Iterator[np.ndarray]:
        """int8 ``[c, G, K/G, BLOCK]``, from the first block to the last. Their scales are remembered."""
        scales = np.ones((self.blocks * BLOCK, self.groups), np.float32)
        for start, stop in self._ranges():
            rows = self._grouped(start, stop)
            scales[start:stop] = _scale_of(rows)
            codes = np.rint(rows / scales[start:stop, :, None]).astype(np.int8)
            missing = -len(codes) % BLOCK
            if missing:
                codes = np.concatenate([codes, np.zeros((missing, *codes.shape[1:]), np.int8)])
            yield np.ascontiguousarray(codes.reshape(-1, BLOCK, *codes.shape[1:]).transpose(0, 2, 3, 1))
        self._known = self._by_block(scales)

    def _grouped(self, start: int, stop: int) -> np.ndarray:
        """Rows as ``[n, G, K/G]``."""
        return self.weight.rows(start, stop).reshape(stop - start, self.groups, -1)

    def _ranges(self) -> Iterator[tuple[int, int]]:
        """Rows that are read at once: whole blocks."""
        first = next(self.weight.pieces(), (0, 0))
        step = max(BLOCK, (first[1] - first[0]) // BLOCK * BLOCK)
        channels = self.weight.shape[0]
        for start in range(0, channels, step):
            yield start, min(start + step, channels)


def _scale_of(rows: np.ndarray) -> np.ndarray:
    """float32 ``[n, G]`` of ``[n, G, K/G]``."""
    return scale_of(np.abs(rows).max(axis=2))


class _Codes(ir.LazyTensor):
    """Written a piece at a time."""

    def __init__(self, owner: BlockCodes, name: str, shape: tuple[int, ...]) -> None:
        super().__init__(self._whole, ir.DataType.INT8, ir.Shape(shape), name=name)
        self._owner = owner

    def _whole(self) -> ir.TensorProtocol:
        return ir.tensor(
            np.concatenate(list(self._owner.pieces())).reshape(self.shape.numpy()), name=self.name
        )

    def tofile(self, file: IO[bytes]) -> None:
        for piece in self._owner.pieces():
            file.write(piece.data.cast("B"))
