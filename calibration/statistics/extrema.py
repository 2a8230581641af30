"""The smallest and the largest value of each channel."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass
class Extrema:
    """What has been seen so far, for K channels.

    Attributes:
        low, high: float32 ``[K]``; +∞ and −∞ before the first value.
    """

    low: np.ndarray
    high: np.ndarray

    @classmethod
    def empty(cls, width: int) -> Extrema:
        return cls(np.full(width, np.inf, np.float32), np.full(width, -np.inf, np.float32))

    def add(self, batch: np.ndarray) -> Extrema:
        """Values ``[..., K]``."""
        rows = batch.reshape(-1, batch.shape[-1])
        if len(rows):
            np.minimum(self.low, rows.min(axis=0), out=self.low)
            np.maximum(self.high, rows.max(axis=0), out=self.high)
        return self

    def merge(self, other: Extrema) -> Extrema:
        return Extrema(np.minimum(self.low, other.low), np.maximum(self.high, other.high))

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """The range of each channel, which always holds zero: ``low ≤ 0 ≤ high``, float32 ``[K]`` each."""
        zero = np.float32(0)
        return np.minimum(self.low, zero), np.maximum(self.high, zero)
