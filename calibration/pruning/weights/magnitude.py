"""The smallest weights of a matrix become zero (Han et al. 2015, arXiv 1506.02626). Reads no text."""

from __future__ import annotations

import numpy as np

from calibration.pruning.sparsity import Sparsity, least

READS_TEXT = False


def prune(rows: np.ndarray, hessian: np.ndarray | None, sparsity: Sparsity, name: str) -> np.ndarray:
    """``[R, K]`` with its smallest weights zero, the others as they were."""
    return np.where(least(np.abs(rows), sparsity, by_row=False), np.float32(0), rows)
