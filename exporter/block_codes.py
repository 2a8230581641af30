"""The codes of a weight that its source already quantized: which format they are in, and what they are worth."""

from __future__ import annotations

import dataclasses

import numpy as np


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
