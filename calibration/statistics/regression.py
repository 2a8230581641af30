"""What the least squares of one set of values on another takes: their second moments and means.

For targets t and inputs x over T samples, the map W with bias b that has the least mean of ``|t − W·x − b|²``
solves ``W · Cov(x, x) = Cov(t, x)``, ``b = E[t] − W·E[x]``; without a bias, moments about zero stand in for the
covariances.
"""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class SecondMoments:
    """``E[x·xᵀ]`` ``[K, K]`` and ``E[t·xᵀ]`` ``[R, K]``, about the means where there is a bias; the means
    themselves."""

    inputs: np.ndarray
    cross: np.ndarray
    input_mean: np.ndarray
    target_mean: np.ndarray


@dataclasses.dataclass
class Regression:
    """What has been seen so far: sums in float64, products of a batch in float32.

    Attributes:
        inputs: ``Σ x·xᵀ``, ``[K, K]``.
        cross: ``Σ t·xᵀ``, ``[R, K]``.
        input_sum, target_sum: ``[K]``, ``[R]``.
        count: samples.
    """

    inputs: np.ndarray
    cross: np.ndarray
    input_sum: np.ndarray
    target_sum: np.ndarray
    count: int

    @classmethod
    def empty(cls, targets: int, inputs: int) -> Regression:
        return cls(
            np.zeros((inputs, inputs)), np.zeros((targets, inputs)), np.zeros(inputs), np.zeros(targets), 0
        )

    def add(self, target: np.ndarray, values: np.ndarray) -> Regression:
        """Targets ``[..., R]`` and inputs ``[..., K]``."""
        t = np.ascontiguousarray(target.reshape(-1, target.shape[-1]), np.float32)
        x = np.ascontiguousarray(values.reshape(-1, values.shape[-1]), np.float32)
        self.inputs += x.T @ x
        self.cross += t.T @ x
        self.input_sum += x.sum(0, dtype=np.float64)
        self.target_sum += t.sum(0, dtype=np.float64)
        self.count += len(x)
        return self

    def merge(self, other: Regression) -> Regression:
        return Regression(
            self.inputs + other.inputs,
            self.cross + other.cross,
            self.input_sum + other.input_sum,
            self.target_sum + other.target_sum,
            self.count + other.count,
        )

    def finish(self, *, bias: bool) -> SecondMoments:
        """Moments about the means where the map has a bias, else about zero."""
        count = max(self.count, 1)
        mean, target = self.input_sum / count, self.target_sum / count
        inputs, cross = self.inputs / count, self.cross / count
        if bias:
            inputs, cross = inputs - np.outer(mean, mean), cross - np.outer(target, mean)
        return SecondMoments(inputs, cross, mean, target)
