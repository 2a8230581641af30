"""Weights times known matrices, as expressions: read by rows when they are written, like every other weight.

They are no dataclasses, so that a proof of a pass, which draws the leaves of an expression and may cut their columns,
takes each for a leaf: what is multiplied here cannot be cut.
"""

from __future__ import annotations

import numpy as np

from exporter.weights import Weight


class TimesMatrix(Weight):
    """``W · diag(M, M, …)``: each run of k columns times M ``[k, m]``."""

    def __init__(self, base: Weight, matrix: np.ndarray) -> None:
        self.base, self.matrix = base, matrix

    @property
    def shape(self) -> tuple[int, ...]:
        rows, columns = self.base.shape
        size, wide = self.matrix.shape
        return rows, columns // size * wide

    def rows(self, start: int, stop: int) -> np.ndarray:
        rows = self.base.rows(start, stop)
        runs = rows.reshape(len(rows), -1, len(self.matrix))
        return np.ascontiguousarray((runs @ self.matrix).reshape(len(rows), -1))


class MatrixTimes(Weight):
    """``diag(M, M, …)ᵀ · W``: each run of k rows mixed by M ``[k, k]``; W may be a vector. Reads the runs whole."""

    def __init__(self, base: Weight, matrix: np.ndarray) -> None:
        self.base, self.matrix = base, matrix

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    def rows(self, start: int, stop: int) -> np.ndarray:
        size = len(self.matrix)
        first, last = start // size, -(-stop // size)
        mixed = []
        for run in range(first, last):
            a, b = max(start - run * size, 0), min(stop - run * size, size)
            mixed.append(self.matrix[:, a:b].T @ self.base.rows(run * size, (run + 1) * size))
        return np.ascontiguousarray(np.concatenate(mixed))


class TimesDiagonal(Weight):
    """``W · diag(v)``: column i times ``v[i]``."""

    def __init__(self, base: Weight, vector: Weight) -> None:
        self.base, self.vector = base, vector

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    def rows(self, start: int, stop: int) -> np.ndarray:
        rows: np.ndarray = self.base.rows(start, stop) * self.vector.read()
        return rows


class TimesRows(Weight):
    """``diag(v) · W``: row i times ``v[i]``; W may be a vector."""

    def __init__(self, base: Weight, vector: Weight) -> None:
        self.base, self.vector = base, vector

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    def rows(self, start: int, stop: int) -> np.ndarray:
        rows = self.base.rows(start, stop)
        factors = self.vector.rows(start, stop).reshape(-1, *[1] * (rows.ndim - 1))
        scaled: np.ndarray = rows * factors
        return scaled


class TimesVector(Weight):
    """``W · v (+ b)``, a vector."""

    def __init__(self, base: Weight, vector: Weight, bias: Weight | None = None) -> None:
        self.base, self.vector, self.bias = base, vector, bias

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape[:1]

    def rows(self, start: int, stop: int) -> np.ndarray:
        product: np.ndarray = self.base.rows(start, stop) @ self.vector.read()
        return product if self.bias is None else product + self.bias.rows(start, stop)


class Diagonal(Weight):
    """``diag(v)``, a square matrix."""

    def __init__(self, vector: Weight) -> None:
        self.vector = vector

    @property
    def shape(self) -> tuple[int, ...]:
        return self.vector.shape * 2

    def rows(self, start: int, stop: int) -> np.ndarray:
        rows = np.zeros((stop - start, self.shape[1]), np.float32)
        at = np.arange(start, stop)
        rows[at - start, at] = self.vector.rows(start, stop)
        return rows
