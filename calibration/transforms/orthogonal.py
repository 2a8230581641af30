"""Orthogonal matrices that spread what lies in one channel over all of them."""

from __future__ import annotations

import numpy as np


def spreading(size: int, seed: int = 0) -> np.ndarray:
    """An orthogonal matrix with entries of like size, float32 ``[size, size]``.

    ``diag(±1) · (H ⊗ Q)``: H the Hadamard matrix of the largest power of two in the size (Sylvester 1867), Q a random
    orthogonal matrix of what is left, signs drawn by the seed. Sources: Chee et al. 2023 (QuIP), Ashkboos et al. 2024
    (QuaRot).
    """
    random = np.random.default_rng(seed)
    power = size & -size
    hadamard = np.ones((1, 1))
    while len(hadamard) < power:
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    matrix = np.kron(hadamard / np.sqrt(power), _random(size // power, random))
    return (random.choice([-1.0, 1.0], size)[:, None] * matrix).astype(np.float32)


def keeping_ones(size: int, seed: int = 0) -> np.ndarray:
    """The same with ``R · 1 = 1``, float32 ``[size, size]``: it keeps a vector's mean, and so commutes with LayerNorm.

    A random rotation of the space at right angles to the vector of ones, carried there by a reflection.
    """
    axis = np.full(size, size**-0.5)
    axis[0] -= 1
    reflection = np.eye(size) - 2 * np.outer(axis, axis) / (axis @ axis)
    inner = np.eye(size)
    inner[1:, 1:] = _random(size - 1, np.random.default_rng(seed))
    return np.asarray(reflection @ inner @ reflection, np.float32)


def _random(size: int, random: np.random.Generator) -> np.ndarray:
    """Drawn evenly from all orthogonal matrices: QR of normal numbers, with R's signs taken out (Mezzadri 2007)."""
    q, r = np.linalg.qr(random.standard_normal((size, size)))
    matrix: np.ndarray = q * np.sign(np.diag(r))
    return matrix
