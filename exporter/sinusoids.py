"""Positions as sines and cosines (Vaswani et al. 2017), laid out as in tensor2tensor: sines in the first half of the
channels, cosines in the second."""

from __future__ import annotations

import math

import numpy as np

from exporter.decoder import Sinusoids

LONGEST = 10_000
"""How much slower the last sine is than the first."""


def table(sinusoids: Sinusoids, context: int, channels: int) -> np.ndarray:
    """What is added by position, float32 ``[context, channels]``; an even number of channels, 4 at least."""
    half = channels // 2
    exponents = np.arange(half, dtype=np.float32) * np.float32(-math.log(LONGEST) / (half - 1))
    # Rounded correctly, as torch's nearly all are.
    frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
    places = np.arange(sinusoids.first, sinusoids.first + context, dtype=np.float32)
    angles = np.outer(places, frequencies)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
