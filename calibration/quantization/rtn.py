"""Round to nearest, with each block's scale searched for the least squared error.

For given codes q the best scale of a block is ``s = Σwq / Σq²``, and its error is ``Σw² − (Σwq)² / Σq²``, so a
candidate is judged by ``(Σwq)² / Σq²`` alone. Candidates come from a few start scales around
``extreme / −2^(bits−1)``, where extreme is the signed weight of largest magnitude (llama.cpp's Q4_0 takes the
same); the best is refitted once. The scale is rounded to float16 *before* the codes are taken for good, so nothing
is lost between the search and the file.

Float16 bounds what a scale can be. Blocks too large for it are refused. Blocks so small that the scale would
round to zero are coded on the smallest step there is, 2⁻²⁴: their error is at most 2⁻²⁵ a weight.

The arithmetic runs on pieces that fit a core's cache, transposed so that a block is a column: numpy then reduces
along the slow axis, which it does ten times faster than along rows of 32.
"""

from __future__ import annotations

import numpy as np

from calibration.scheme import Grid
from exporter.errors import rejected
from exporter.weights import Coded, require_finite

CACHED = 1 << 16
"""Weights that are worked on at once: 256 KB of float32, twice."""

STARTS = {
    8: (-116.0, -119.0, -122.0, -125.0, -128.0),
    4: (-6.8, -7.3, -7.8, -8.3, -8.8),
    2: (-1.4, -1.7, -2.0, -2.3, -2.6),
}
"""Codes on which a block's extreme weight is put in turn; docs/experiments.md has the errors and times."""

_SMALLEST = np.float32(2.0**-24)
_LARGEST = np.float32(65504.0)


def quantize(rows: np.ndarray, grid: Grid, name: str = "") -> Coded:
    """Quantize whole rows.

    Args:
        rows: float32 ``[R, K]``.
        grid: symmetric grid; the last block of a row is short where K is not a multiple of its block size.
        name: the tensor's name, for errors.

    Returns:
        Codes uint8 ``[R, K]`` (code of zero is ``2^(bits−1)``), scales float16 ``[R, ⌈K/block⌉]``, no minima.

    Raises:
        OnnxGptError: ``weights-not-finite`` for NaN or infinity, ``scale-overflow`` where float16 cannot hold a
            scale.
    """
    scale = search(rows, grid, name)
    return Coded(encode(rows, scale, grid), scale, None)


def search(rows: np.ndarray, grid: Grid, name: str = "") -> np.ndarray:
    """The scales of `quantize` alone: float16 ``[R, ⌈K/block⌉]``."""
    blocks = -(-rows.shape[1] // grid.block_size)
    scale = np.empty((rows.shape[0], blocks), np.float16)
    for start, stop in _pieces(rows):
        flat = _blocks(rows[start:stop], grid.block_size)
        found = _search(np.ascontiguousarray(flat.T), grid, name, rows[start:stop])
        scale[start:stop] = found.reshape(stop - start, blocks)
    return scale


def encode(rows: np.ndarray, scale: np.ndarray, grid: Grid) -> np.ndarray:
    """Nearest codes on a known grid: uint8 ``[R, K]``; a block whose scale is zero gets the code of zero."""
    R, K = rows.shape
    codes = np.empty((R, K), np.uint8)
    inverse = _inverse(scale.astype(np.float32))
    for start, stop in _pieces(rows):
        flat = _blocks(rows[start:stop], grid.block_size)
        q = flat * inverse[start:stop].reshape(-1, 1)
        _round(q, grid)
        q -= np.float32(grid.low)
        codes[start:stop] = q.reshape(stop - start, -1)[:, :K]
    return codes


def _pieces(rows: np.ndarray) -> list[tuple[int, int]]:
    step = max(1, CACHED // rows.shape[1])
    return [(start, min(start + step, len(rows))) for start in range(0, len(rows), step)]


def _blocks(rows: np.ndarray, block: int) -> np.ndarray:
    """Blocks as rows, ``[R · ⌈K/block⌉, block]``; the last of each row is padded with zeros."""
    R, K = rows.shape
    if K % block:
        padded = np.zeros((R, -(-K // block) * block), np.float32)
        padded[:, :K] = rows
        rows = padded
    return rows.reshape(-1, block)


def _search(w: np.ndarray, grid: Grid, name: str, rows: np.ndarray) -> np.ndarray:
    """Scales, float16 ``[n]``, of blocks that are the columns of ``w``, float32 ``[block, n]``."""
    high, low = w.max(axis=0), w.min(axis=0)
    if not (np.isfinite(high).all() and np.isfinite(low).all()):  # max and min pass NaN on
        require_finite(rows, name)
    extreme = np.where(high > -low, high, low)
    largest = np.abs(extreme).max(initial=0)
    if largest > _LARGEST * -grid.low:
        raise rejected(
            "scale-overflow",
            f"{name or 'a weight'} holds values up to {largest:.3g}: their scale is beyond float16",
            "check the checkpoint, or leave this model unquantized",
        )
    inverse = _inverse(extreme)
    q = np.empty_like(w)
    best = np.full(extreme.shape, -1, np.float32)
    scale = np.zeros_like(best)
    for start in STARTS[grid.bits]:
        product, fitted = _fit(w, inverse * np.float32(start), grid, q)
        product *= fitted
        better = product > best
        np.copyto(best, product, where=better)
        np.copyto(scale, fitted, where=better)
    _, scale = _fit(w, _inverse(scale), grid, q)
    return _to_float16(scale, extreme, grid)


def _fit(w: np.ndarray, inverse: np.ndarray, grid: Grid, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``Σwq`` and the least-squares scale ``Σwq / Σq²`` for the codes q of each column; ``q`` is scratch."""
    np.multiply(w, inverse, out=q)
    _round(q, grid)
    product = np.einsum("bn,bn->n", w, q)
    square = np.einsum("bn,bn->n", q, q)
    np.maximum(square, np.float32(1), out=square)  # no codes but zero
    return product, product / square


def _round(q: np.ndarray, grid: Grid) -> None:
    np.rint(q, out=q)
    np.clip(q, np.float32(grid.low), np.float32(grid.high), out=q)


def _inverse(scale: np.ndarray) -> np.ndarray:
    """1/scale, and 0 where a scale is 0 or so small that its inverse is not a float32."""
    inverse = np.zeros_like(scale)
    np.divide(np.float32(1), scale, out=inverse, where=np.abs(scale) >= np.finfo(np.float32).tiny)
    return inverse


def _to_float16(scale: np.ndarray, extreme: np.ndarray, grid: Grid) -> np.ndarray:
    """Scales as the file holds them: no live block is left with a scale of zero, none becomes infinite."""
    lost = (np.abs(scale) < _SMALLEST) & (extreme != 0)
    if lost.any():
        scale = np.where(lost, np.copysign(_SMALLEST, extreme * np.float32(grid.low)), scale)
    return np.clip(scale, -_LARGEST, _LARGEST).astype(np.float16)
