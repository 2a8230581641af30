"""Weights that move their outputs least become zero: ``|W[i,k]| · ‖x[k]‖``, compared within each row.

Sun et al. 2023, "A Simple and Effective Pruning Approach for Large Language Models" (arXiv 2306.11695). What is
left stays as it was.
"""

from __future__ import annotations

import numpy as np

from calibration.pruning.sparsity import Sparsity, least

READS_TEXT = True


def prune(rows: np.ndarray, hessian: np.ndarray | None, sparsity: Sparsity, name: str) -> np.ndarray:
    """``[R, K]`` with its weakest weights zero, the others as they were."""
    assert hessian is not None
    sizes = np.sqrt(np.diag(hessian)).astype(np.float32)
    return np.where(least(np.abs(rows) * sizes, sparsity, by_row=True), np.float32(0), rows)
