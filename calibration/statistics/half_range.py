"""Whether values fit float16: the largest, the largest sum of squares of a row, and what rounding takes from them."""

from __future__ import annotations

import dataclasses

import numpy as np

from graph_passes.lowering.half import HALF_MAX


@dataclasses.dataclass
class HalfRange:
    """What has been seen so far.

    Attributes:
        largest: of |x|.
        square: largest sum of squares of a row, the sum that a norm takes.
        energy: Σ x².
        lost: Σ (x − x₁₆)², over values that float16 holds at all.
        count: values.
    """

    largest: float
    square: float
    energy: float
    lost: float
    count: int

    @classmethod
    def empty(cls) -> HalfRange:
        return cls(0.0, 0.0, 0.0, 0.0, 0)

    def add(self, batch: np.ndarray) -> HalfRange:
        """Values ``[..., K]``, float32."""
        rows = batch.reshape(-1, batch.shape[-1])
        if not rows.size:
            return self
        squares = np.einsum("tk,tk->t", rows, rows, dtype=np.float64)
        bounded = np.clip(rows, -HALF_MAX, HALF_MAX)
        off = bounded - bounded.astype(np.float16)
        self.largest = max(self.largest, float(np.abs(rows).max()))
        self.square = max(self.square, float(squares.max()))
        self.energy += float(squares.sum())
        self.lost += float(np.einsum("tk,tk->", off, off, dtype=np.float64))
        self.count += rows.size
        return self

    def merge(self, other: HalfRange) -> HalfRange:
        return HalfRange(
            max(self.largest, other.largest),
            max(self.square, other.square),
            self.energy + other.energy,
            self.lost + other.lost,
            self.count + other.count,
        )

    def finish(self) -> HalfFit:
        share = (self.lost / self.energy) ** 0.5 if self.energy else 0.0
        return HalfFit(self.largest, self.square, share)


@dataclasses.dataclass(frozen=True)
class HalfFit:
    """How values lie in float16.

    Attributes:
        largest: of |x|; 65504 is the last that float16 holds.
        square: largest sum of squares of a row.
        rounding: error of rounding over the size of the values, root mean square: 2.1e-4 of normal numbers, 2.8e-4 at
            most where none is subnormal.
    """

    largest: float
    square: float
    rounding: float
