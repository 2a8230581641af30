"""The second moment of a linear map's inputs, ``X·Xᵀ / T``: how much an error in its weights costs its outputs.

For a map W and an error E in it, the mean square of the outputs' error over T inputs x is ``tr(E · H · Eᵀ)`` with
``H = Σ x·xᵀ / T``, half the Hessian of that error and what it is called for short.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from exporter.errors import rejected


@dataclasses.dataclass
class Hessian:
    """What has been seen so far.

    A batch's own product is taken in float32 (docs/experiments.md has its error), and batches are summed in float64,
    so that the number of samples adds no error of its own.

    Attributes:
        total: ``Σ x·xᵀ``, float64 ``[K, K]``.
        count: rows.
    """

    total: np.ndarray
    count: int

    @classmethod
    def empty(cls, width: int) -> Hessian:
        return cls(np.zeros((width, width)), 0)

    def add(self, batch: np.ndarray) -> Hessian:
        """Values ``[..., K]``."""
        return self.add_product(*product(batch))

    def add_product(self, product: np.ndarray, count: int) -> Hessian:
        """What `product` gave for a batch, in another thread say."""
        self.total += product
        self.count += count
        return self

    def merge(self, other: Hessian) -> Hessian:
        return Hessian(self.total + other.total, self.count + other.count)

    def finish(self) -> np.ndarray:
        """``Σ x·xᵀ / T``, float64 ``[K, K]``."""
        return self.total / max(self.count, 1)


def require_finite(statistic: np.ndarray, name: str) -> None:
    """Refuse a statistic of activations that are not numbers.

    Raises:
        OnnxGptError: ``activations-not-finite``.
    """
    if not np.isfinite(statistic).all():
        raise rejected(
            "activations-not-finite",
            f"{name}: the float model gives NaN or infinity on the calibration text",
            "check the checkpoint, or give other calibration text",
        )


def product(batch: np.ndarray) -> tuple[np.ndarray, int]:
    """``Σ x·xᵀ`` of a batch ``[..., K]`` in float32, and its number of rows."""
    rows = np.ascontiguousarray(batch.reshape(-1, batch.shape[-1]), np.float32)
    return rows.T @ rows, len(rows)  # one array and its transpose: BLAS computes one half
