"""How large each channel is: its largest magnitude and its mean square."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of K channels: ``absmax`` and ``mean_square``, float64 ``[K]``."""

    absmax: np.ndarray
    mean_square: np.ndarray


@dataclasses.dataclass
class Moments:
    """What has been seen so far.

    Attributes:
        absmax: float64 ``[K]``.
        square: sum of squares, float64 ``[K]``.
        count: rows.
    """

    absmax: np.ndarray
    square: np.ndarray
    count: int

    @classmethod
    def empty(cls, width: int) -> Moments:
        return cls(np.zeros(width), np.zeros(width), 0)

    def add(self, batch: np.ndarray) -> Moments:
        """Values ``[..., K]``."""
        rows = batch.reshape(-1, batch.shape[-1])
        if len(rows):
            np.maximum(self.absmax, np.abs(rows).max(axis=0), out=self.absmax)
            self.square += np.einsum("tk,tk->k", rows, rows, dtype=np.float64)
            self.count += len(rows)
        return self

    def merge(self, other: Moments) -> Moments:
        return Moments(
            np.maximum(self.absmax, other.absmax), self.square + other.square, self.count + other.count
        )

    def finish(self) -> Sizes:
        return Sizes(self.absmax.copy(), self.square / max(self.count, 1))
