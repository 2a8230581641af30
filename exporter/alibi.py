"""Attention with linear biases (ALiBi, Press et al. 2022): the further away a key, the lower its score.

Head h adds ``b_h(j) − b_h(i)`` to the score of query i and key j, with ``b_h(j) = slope_h · j``. Softmax does not see
what a row adds to all its scores, so ``b_h(j)`` alone would do; the difference is small where it matters, and keeps its
precision in float16.
"""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np

from exporter.decoder import Alibi

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def slopes(heads: int) -> tuple[float, ...]:
    """A slope for each head: ``2^(−8k/n)`` for k = 1 … n, where n is the number of heads or the next power of two.

    Where there are fewer heads than that, those of even k come first and then as many of odd k as are needed.
    """
    n = 2 ** math.ceil(math.log2(heads))
    order = range(1, n + 1) if n == heads else [*range(2, n + 1, 2), *range(1, n + 1, 2)][:heads]
    return tuple(float(np.float32(2.0 ** (-8 * k / n))) for k in order)


def table(alibi: Alibi, context: int) -> np.ndarray:
    """``b_h(j)`` by position and head, float32 ``[context, H]``, rounded as transformers rounds it."""
    places, rises = np.arange(context, dtype=np.float32)[:, None], np.array(alibi.slopes, np.float32)
    if alibi.bfloat16:
        product = (places.astype(BFLOAT16) * rises.astype(BFLOAT16)).astype(np.float32)
    else:
        product = places * rises
    found: np.ndarray = product * np.float32(alibi.factor)
    return found
