"""The symmetric grid of 8 bits that channels of weights and of caches share: codes from −127 to 127, one scale."""

from __future__ import annotations

import numpy as np

LARGEST = 127
"""Largest code in size. −128 is left out: the grid is symmetric then, and products of u8 and −128 are the first to
saturate where sums of two have 16 bits."""


def scale_of(largest: np.ndarray) -> np.ndarray:
    """Scales, float32, that put the largest sizes on the largest code; 1 for what is zero, or as good as zero: a size
    whose scale float32 does not hold."""
    scale = largest / np.float32(LARGEST)
    return np.where(scale > 0, scale, np.float32(1))
