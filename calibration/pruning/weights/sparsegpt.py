"""Weights become zero column by column, and what their row loses is taken up by the columns still to come.

Frantar & Alistarh 2023, "SparseGPT" (arXiv 2301.00774): with ``H = X·Xᵀ / T`` and the upper Cholesky factor U of
``H⁻¹``, setting ``w[j]`` to zero costs ``(w[j] / U[j,j])²`` and the best the later columns can do about it is
``w[k] −= w[j] / U[j,j] · U[j,k]``. Which weights go is chosen for `BLOCK` columns at once, over all rows; in an N:M
pattern for each group when its turn comes.
"""

from __future__ import annotations

import numpy as np

from calibration.pruning.second_order import inverse_factor
from calibration.pruning.sparsity import Sparsity, least, require_groups

READS_TEXT = True
BLOCK, INNER = 128, 32
"""Columns that are chosen in at once, as in the paper, and those between which corrections are sums and not
products of matrices. Every pattern's group divides both."""


def prune(rows: np.ndarray, hessian: np.ndarray | None, sparsity: Sparsity, name: str) -> np.ndarray:
    """``[R, K]`` with some weights zero and the others making up for them.

    Raises:
        OnnxGptError: ``activations-not-finite``; ``prune-pattern``.
    """
    assert hessian is not None
    U = inverse_factor(hessian, name)
    K = rows.shape[1]
    if sparsity.group:
        require_groups(K, sparsity)
    w = np.ascontiguousarray(rows.T)  # columns as rows: [K, R]
    # what never comes costs nothing
    curvature = np.where(np.diag(hessian) > 0, 1 / np.diag(U) ** 2, 0)[:, None]
    error, gone = np.empty_like(w), np.empty(w.shape, bool)
    together = sparsity.group or BLOCK
    for a in range(0, K, BLOCK):
        b = min(a + BLOCK, K)
        for c in range(a, b, INNER):
            d = min(c + INNER, b)
            for j in range(c, d):
                if j % together == 0:
                    some = slice(j, min(j + together, b))
                    gone[some] = least((w[some] ** 2 * curvature[some]).T, sparsity, by_row=False).T
                error[j] = np.where(gone[j], w[j] / U[j, j], np.float32(0))
                w[j][gone[j]] = 0
                w[j + 1 : d] -= U[j, j + 1 : d, None] * error[j]
            w[d:b] -= U[c:d, d:b].T @ error[c:d]
        w[b:] -= U[a:b, b:].T @ error[a:b]
    return np.ascontiguousarray(w.T)
