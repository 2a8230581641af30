"""Codes that make up for each other's errors, by what the layer's inputs say of which errors matter.

Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers"
(arXiv 2210.17323), followed by coordinate descent on the codes (Behdin et al. 2023, QuantEase, arXiv 2309.01885) and
a least-squares fit of all scales of a row together. Everything lowers one objective, the mean square of the error of
the layer's outputs, ``tr((W − Ŵ) · H · (W − Ŵ)ᵀ)`` with ``H = X·Xᵀ / T``:

1. scales of blocks, searched with each column's error counting ``H[k,k]`` (`calibration.quantization.rtn`), before
   any code is taken: the grid of every block is fixed, so the order of the columns is free;
2. columns in the order of falling ``H[k,k]``: each is rounded, and what it is off is taken up by the columns that are
   still to come, by the Cholesky factor of H⁻¹. Groups keep their members, as fast kernels want;
3. sweeps over all columns, each put to its best code given all others;
4. scales that are best for these codes, and sweeps again.

Damping: ``λ = damping · mean(diag H)`` is added to the diagonal, tenfold more up to `MOST_DAMPING` where the factor
still does not exist; beyond that the diagonal alone is used, which is round to nearest with weighted scales. A column
that is zero in every sample has no influence and is rounded to nearest.

The arithmetic is on columns as rows (``[K, R]``) in two levels of blocks, so that almost all of it is BLAS.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from calibration.quantization import rtn
from calibration.scheme import Grid
from calibration.statistics.hessian import require_finite
from exporter.block_codes import Coded

MOST_DAMPING = 1.0
OUTER, INNER = 128, 16
"""Columns between which corrections are products of matrices, and those between which they are sums."""
ROWS = 1024
"""Rows that are worked on at once."""
RIDGE = 1e-4
"""How firmly a fitted scale is held at what it was, of the mean curvature: some blocks have hardly any."""


@dataclasses.dataclass(frozen=True, eq=False)
class Objective:
    """A layer's inputs, prepared once for all of its rows.

    Attributes:
        hessian: H with its damping, float32 ``[K, K]``.
        importance: its diagonal over the mean, float32 ``[K]``: how much an error of each column counts.
        order: columns as they are rounded, ``[K]``.
        factor: U of ``H⁻¹ = Uᵀ·U`` in that order, float32 ``[K, K]`` upper; the identity where there is none.
        damping: what it took.
    """

    hessian: np.ndarray
    importance: np.ndarray
    order: np.ndarray
    factor: np.ndarray
    damping: float


def objective(hessian: np.ndarray, damping: float = 0.01, name: str = "a layer's inputs") -> Objective:
    """Prepare ``H = X·Xᵀ / T``, float64 ``[K, K]``.

    Raises:
        OnnxGptError: ``activations-not-finite``.
    """
    require_finite(hessian, name)
    diagonal = np.diag(hessian)
    mean = float(diagonal.mean())
    if mean <= 0:  # nothing ever came in: every error is as good as any other
        hessian, mean = np.eye(len(hessian)), 1.0
        diagonal = np.diag(hessian)
    order = np.argsort(-diagonal, kind="stable")
    while damping <= MOST_DAMPING:
        damped = hessian + damping * mean * np.eye(len(hessian))
        try:
            factor = _factor(damped[np.ix_(order, order)])
        except np.linalg.LinAlgError:
            damping *= 10
            continue
        break
    else:
        damped, factor = np.diag(np.maximum(diagonal, mean * 1e-6)), np.eye(len(hessian))
    importance = (np.diag(damped) / np.diag(damped).mean()).astype(np.float32)
    upper = np.ascontiguousarray(factor, np.float32)
    return Objective(np.ascontiguousarray(damped, np.float32), importance, order, upper, damping)


def _factor(hessian: np.ndarray) -> np.ndarray:
    """Upper U with ``H⁻¹ = Uᵀ·U``: with the order of rows and columns reversed, ``H = V·Vᵀ`` for an upper V = U⁻¹."""
    upper = np.linalg.cholesky(hessian[::-1, ::-1])[::-1, ::-1]
    return _inverse_upper(np.ascontiguousarray(upper))


def _inverse_upper(matrix: np.ndarray) -> np.ndarray:
    """The inverse of an upper triangular matrix, by halves: almost all of it is products."""
    K = len(matrix)
    if K <= OUTER:
        return np.triu(np.linalg.inv(matrix))
    half = K // 2
    inverse = np.zeros_like(matrix)
    a, c = _inverse_upper(matrix[:half, :half]), _inverse_upper(matrix[half:, half:])
    inverse[:half, :half], inverse[half:, half:] = a, c
    inverse[:half, half:] = -(a @ matrix[:half, half:] @ c)
    return inverse


def quantize(
    rows: np.ndarray,
    inputs: Objective,
    grid: Grid,
    name: str = "a weight",
    first_row: int = 0,
    *,
    rounds: int = 1,
    sweeps: int = 2,
) -> Coded:
    """Quantize whole rows; a row's codes depend on that row alone.

    Args:
        rows: float32 ``[R, K]``.
        inputs: of the layer.
        grid, name, first_row: as in `rtn.quantize`, whose errors these are too.
        rounds: times that scales are fitted and codes swept again.
        sweeps: over all columns, each time.

    Returns:
        Codes uint8 ``[R, K]``, scales float16 ``[R, ⌈K/block⌉]``, no minima.
    """
    R, K = rows.shape
    scale = rtn.search(rows, grid, name, first_row, inputs.importance)
    codes = np.empty((R, K), np.uint8)
    for start in range(0, R, ROWS):
        some = slice(start, start + ROWS)
        work = _Columns(rows[some], scale[some], inputs, grid)
        work.round()
        work.descend(sweeps)
        for _ in range(rounds):
            work.fit_scales()
            work.descend(sweeps)
        codes[some] = (work.q.T - np.float32(grid.low)).astype(np.uint8)
        scale[some] = work.scale.T
    return Coded(codes, scale, None)


class _Columns:
    """Some rows of a weight, their columns as rows. G blocks a row.

    Attributes:
        w: float32 ``[K, R]``, what is to be met.
        q: signed codes as float32 ``[K, R]``.
        scale: float32 ``[G, R]``, values of float16.
    """

    def __init__(self, rows: np.ndarray, scale: np.ndarray, inputs: Objective, grid: Grid) -> None:
        self.w = np.ascontiguousarray(rows.T)
        self.q = np.zeros_like(self.w)
        self.inputs, self.grid = inputs, grid
        self.block_of = np.arange(len(self.w)) // grid.block_size
        self.scale: np.ndarray = np.empty(0, np.float32)
        self.inverse: np.ndarray = np.empty(0, np.float32)
        self._take(np.ascontiguousarray(scale.T.astype(np.float32)))

    def _take(self, scale: np.ndarray) -> None:
        self.scale, self.inverse = scale, rtn.inverse(scale)

    def _nearest(self, column: int, value: np.ndarray) -> np.ndarray:
        """Round a column to its codes; gives what they are worth."""
        block, q = self.block_of[column], self.q[column]
        np.multiply(value, self.inverse[block], out=q)
        rtn.round_to(q, self.grid)
        worth: np.ndarray = q * self.scale[block]
        return worth

    def round(self) -> None:
        """GPTQ: round column by column, and let the later ones take up the error."""
        order, U = self.inputs.order, self.inputs.factor
        w = self.w[order]
        K = len(w)
        error = np.empty_like(w)
        for a in range(0, K, OUTER):
            b = min(a + OUTER, K)
            for c in range(a, b, INNER):
                d = min(c + INNER, b)
                for j in range(c, d):
                    error[j] = (w[j] - self._nearest(order[j], w[j])) / U[j, j]
                    w[j + 1 : d] -= U[j, j + 1 : d, None] * error[j]
                w[d:b] -= U[c:d, d:b].T @ error[c:d]
            w[b:] -= U[a:b, b:].T @ error[a:b]

    def descend(self, sweeps: int) -> None:
        """Coordinate descent: each column to the code that is best given all others."""
        H = self.inputs.hessian
        K = len(self.w)
        step = np.float32(1) / np.diag(H)
        worth = self.q * self.scale[self.block_of]
        change = np.empty_like(worth)
        for _ in range(sweeps):
            slope = H @ (self.w - worth)
            for a in range(0, K, OUTER):
                b = min(a + OUTER, K)
                for c in range(a, b, INNER):
                    d = min(c + INNER, b)
                    for j in range(c, d):
                        now = self._nearest(j, worth[j] + slope[j] * step[j])
                        change[j] = worth[j] - now
                        worth[j] = now
                        slope[j + 1 : d] += H[j, j + 1 : d, None] * change[j]
                    slope[d:b] += H[c:d, d:b].T @ change[c:d]
                slope[b:] += H[a:b, b:].T @ change[a:b]

    def fit_scales(self) -> None:
        """The scales of a row that are best together for its codes.

        With ``Ŵ = Σ_g s_g · q_g`` the objective is a square in s: its minimum solves ``A·s = r``,
        ``A[g,h] = q_gᵀ·H·q_h`` and ``r[g] = q_gᵀ·H·w``. A scale of zero stays, and none goes beyond float16.
        """
        H = self.inputs.hessian
        block = self.grid.block_size
        starts = np.arange(0, len(self.w), block)
        G, R = self.scale.shape
        A = np.empty((R, G, G))
        for g, start in enumerate(starts):
            own = slice(start, start + block)
            A[:, g] = np.add.reduceat((H[:, own] @ self.q[own]) * self.q, starts, axis=0).T
        r = np.add.reduceat((H @ self.w) * self.q, starts, axis=0).T.astype(np.float64)
        curvature = np.einsum("rgg->rg", A)
        ridge = RIDGE * curvature.mean(axis=1, keepdims=True) + np.finfo(np.float32).tiny
        curvature += ridge  # a view of A's diagonal
        r += ridge * self.scale.T
        fitted = np.linalg.solve(A, r[..., None])[..., 0].T.astype(np.float32)
        live = np.isfinite(fitted) & (np.abs(fitted) >= rtn.NORMAL) & (np.abs(fitted) <= rtn.LARGEST)
        kept = np.where(live & (self.scale != 0), fitted, self.scale)
        self._take(kept.astype(np.float16).astype(np.float32))
