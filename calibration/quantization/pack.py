"""Codes to the bytes that MatMulNBits and GatherBlockQuantized read, and back.

A row's codes are cut into blocks, the last one padded with the code of zero; inside a block the first code sits in the
lowest bits of the first byte: ``[N, blocks, block · bits / 8]``.
"""

from __future__ import annotations

import numpy as np


def packed_shape(rows: int, columns: int, bits: int, block: int) -> tuple[int, int, int]:
    """Shape of the packed codes of a ``[rows, columns]`` weight."""
    return rows, -(-columns // block), block * bits // 8


def pack(codes: np.ndarray, bits: int, block: int) -> np.ndarray:
    """Unsigned codes ``[N, K]`` (uint8, one a byte) to uint8 ``[N, ⌈K/block⌉, block·bits/8]``."""
    rows, columns = codes.shape
    shape = packed_shape(rows, columns, bits, block)
    if columns % block:
        padded = np.full((rows, shape[1] * block), 1 << (bits - 1), np.uint8)
        padded[:, :columns] = codes
        codes = padded
    packed = np.ascontiguousarray(codes)
    for width in _halvings(bits):
        packed = _join_pairs(packed, width)
    return packed.reshape(shape)


def unpack(packed: np.ndarray, bits: int, columns: int) -> np.ndarray:
    """The inverse of `pack`: uint8 ``[N, columns]``."""
    mask = np.uint8((1 << bits) - 1)
    fields = [(packed >> np.uint8(shift)) & mask for shift in range(0, 8, bits)]
    codes = np.stack(fields, axis=-1).reshape(packed.shape[0], -1)
    return np.ascontiguousarray(codes[:, :columns])


def _halvings(bits: int) -> tuple[int, ...]:
    return {8: (), 4: (4,), 2: (2, 4)}[bits]


def _join_pairs(bytes_: np.ndarray, width: int) -> np.ndarray:
    """Two bytes that hold ``width`` bits each become one, the first in the lower bits."""
    pairs = bytes_.view("<u2")
    joined: np.ndarray = (pairs | (pairs >> np.uint16(8 - width))).astype(np.uint8)
    return joined
