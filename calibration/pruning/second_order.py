"""The inverse of a layer's second moments, damped until it exists."""

from __future__ import annotations

import numpy as np

from calibration.statistics.hessian import require_finite

DAMPING = 0.01
"""Added to the diagonal, of its mean."""
MOST_DAMPING = 100.0


def damped_inverse(hessian: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """``H + λ·I`` and its inverse, float64 ``[K, K]``; λ is raised tenfold until the inverse is positive definite.

    Inputs that are zero on all of the text give the identity: every weight is then as good as any other.

    Raises:
        OnnxGptError: ``activations-not-finite``.
    """
    require_finite(hessian, name)
    mean = float(np.diag(hessian).mean())
    identity = np.eye(len(hessian))
    if mean <= 0:
        return identity, identity
    damping = DAMPING
    while damping <= MOST_DAMPING:
        damped = hessian + damping * mean * identity
        try:
            inverse = np.linalg.inv(np.linalg.cholesky(damped))
        except np.linalg.LinAlgError:
            damping *= 10
            continue
        return damped, inverse.T @ inverse
    return mean * identity, identity / mean


def inverse_factor(hessian: np.ndarray, name: str) -> np.ndarray:
    """U of ``H⁻¹ = Uᵀ·U``, float32 ``[K, K]`` upper triangular. Raises what `damped_inverse` raises."""
    _, inverse = damped_inverse(hessian, name)
    return np.ascontiguousarray(np.linalg.cholesky(inverse).T, np.float32)
