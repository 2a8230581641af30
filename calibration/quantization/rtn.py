"""Round to nearest, with each block's scale searched for the least squared error, large weights counting more.

An error counts ``|w|`` times: a plain square lets the search clip the largest weights, and the model is worse for it
than without a search (docs/experiments.md). For given codes q the best scale of a block is then
``s = Σ|w|wq / Σ|w|q²``, and its error is ``Σ|w|w² − (Σ|w|wq)² / Σ|w|q²``, so a candidate is judged by the last term
alone. Candidates come from a few start scales around ``extreme / −2^(bits−1)``, where extreme is the signed weight of
largest magnitude (llama.cpp's Q4_0 takes the same); the best is refitted once. The scale is rounded to float16 *before*
the codes are taken for good, so nothing is lost between the search and the file.

Float16 bounds what a scale can be. Blocks too large for it are refused. In blocks so small that the scale is
a subnormal, nothing is searched, and scales go up to the next multiple of 2⁻²⁴, which costs at most 2⁻²⁵ a weight.

The arithmetic runs on pieces that fit a processor's cache, transposed so that a block is a column: numpy then
reduces along the slow axis, which it does ten times faster than along rows of 32.
"""

from __future__ import annotations

import numpy as np

from calibration.scheme import Grid
from exporter.block_codes import Coded
from exporter.errors import rejected
from exporter.stored_weights import require_finite

CACHED = 1 << 18
"""Weights that are worked on at once, 1 MB of float32 four times over: more than a core's own cache holds, but of
smaller pieces two threads spend a third of their time on waiting for the interpreter (docs/experiments.md)."""

STARTS = {8: (-128.0, -125.0, -122.0), 4: (-8.0, -7.3, -8.7), 2: (-2.0, -1.5, -2.5)}
"""Codes on which a block's extreme weight is put in turn; docs/experiments.md has the errors and times.

The first is what a quantizer without a search does, so the search is never worse, and it wins a tie: a block
that lies on a grid of powers of two keeps it.
"""

SMALLEST, NORMAL, LARGEST = np.float32(2.0**-24), np.float32(2.0**-14), np.float32(65504)
"""Of float16: the smallest number above zero, the smallest that is no subnormal, the largest."""


def quantize(rows: np.ndarray, grid: Grid, name: str = "a weight", first_row: int = 0) -> Coded:
    """Quantize whole rows.

    Args:
        rows: float32 ``[R, K]``.
        grid: symmetric grid; the last block of a row is short where K is not a multiple of its block size.
        name: the tensor's name, for errors.
        first_row: which row of the tensor ``rows[0]`` is, for errors.

    Returns:
        Codes uint8 ``[R, K]`` (code of zero is ``2^(bits−1)``), scales float16 ``[R, ⌈K/block⌉]``, no minima.

    Raises:
        OnnxGptError: ``weights-not-finite`` for NaN or infinity, ``scale-overflow`` where float16 cannot hold a
            scale.
    """
    scale = search(rows, grid, name, first_row)
    return Coded(encode(rows, scale, grid), scale, None)


def search(
    rows: np.ndarray, grid: Grid, name: str, first_row: int, importance: np.ndarray | None = None
) -> np.ndarray:
    """The scales of `quantize` alone: float16 ``[R, ⌈K/block⌉]``.

    Args:
        importance: how much an error in each column counts, float32 ``[K]`` of order 1, in the place of ``|w|``: known
            where the inputs are.
    """
    blocks = -(-rows.shape[1] // grid.block_size)
    scale = np.empty((rows.shape[0], blocks), np.float16)
    of_columns = None if importance is None else _blocks(importance[None], grid.block_size).T
    for start, stop in _pieces(rows):
        counts = None if of_columns is None else np.tile(of_columns, stop - start)
        flat = _blocks(rows[start:stop], grid.block_size)
        columns = np.ascontiguousarray(flat.T)
        high, low = columns.max(axis=0), columns.min(axis=0)
        if not (np.isfinite(high).all() and np.isfinite(low).all()):  # max and min pass NaN on
            require_finite(rows[start:stop], name, first_row + start)
        extreme = np.where(high > -low, high, low)
        _require_float16(extreme, grid, name)
        found = _search(columns, extreme, grid, counts)
        scale[start:stop] = found.reshape(stop - start, blocks)
    return scale


def encode(rows: np.ndarray, scale: np.ndarray, grid: Grid) -> np.ndarray:
    """Nearest codes on a known grid: uint8 ``[R, K]``; a block whose scale is zero gets the code of zero."""
    R, K = rows.shape
    codes = np.empty((R, K), np.uint8)
    per_code = inverse(scale.astype(np.float32))
    for start, stop in _pieces(rows):
        flat = _blocks(rows[start:stop], grid.block_size)
        q = flat * per_code[start:stop].reshape(-1, 1)
        round_to(q, grid)
        q -= np.float32(grid.low)
        codes[start:stop] = q.reshape(stop - start, -1)[:, :K]
    return codes


def nearest(rows: np.ndarray, grid: Grid) -> np.ndarray:
    """What the codes of `quantize` are worth, float32 ``[R, K]``."""
    coded = quantize(rows, grid)
    steps = np.repeat(coded.scale.astype(np.float32), grid.block_size, axis=1)[:, : rows.shape[1]]
    worth: np.ndarray = (coded.codes.astype(np.float32) + np.float32(grid.low)) * steps
    return worth


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


def _require_float16(extreme: np.ndarray, grid: Grid, name: str) -> None:
    largest = np.abs(extreme).max(initial=0)
    if largest > LARGEST * -grid.low:
        raise rejected(
            "scale-overflow",
            f"{name} holds values up to {largest:.3g}: a {grid.bits}-bit scale is beyond float16",
            "check the checkpoint, or leave this model unquantized",
        )


def _search(w: np.ndarray, extreme: np.ndarray, grid: Grid, counts: np.ndarray | None) -> np.ndarray:
    """Scales, float16 ``[n]``, of blocks that are the columns of ``w``, float32 ``[block, n]``."""
    per_weight = inverse(extreme)
    weighted = _Weighted(w, extreme, counts)
    best = np.full(extreme.shape, -1, np.float32)
    scale = np.zeros_like(best)
    for start in STARTS[grid.bits]:
        product, fitted = weighted.fit(per_weight * np.float32(start), grid)
        product *= fitted
        better = product > best
        np.copyto(best, product, where=better)
        np.copyto(scale, fitted, where=better)
    _, scale = weighted.fit(inverse(scale), grid)
    plain = extreme / np.float32(grid.low)
    scale = np.where(np.abs(plain) < NORMAL, plain, scale)  # float16's steps there undo what a search finds
    return _to_float16(scale, extreme)


class _Weighted:
    """Blocks ``[block, n]``, and how much an error of each counts: as given, or ``|w|`` over the block's largest."""

    def __init__(self, w: np.ndarray, extreme: np.ndarray, counts: np.ndarray | None) -> None:
        self.w = w
        if counts is None:
            counts = np.abs(w)
            counts *= np.abs(inverse(extreme))  # of order 1: no product below over- or underflows
        self.importance = counts
        self.moment = self.importance * w
        self.q = np.empty_like(w)

    def fit(self, per_weight: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
        """``Σ|w|wq`` and the scale of least error ``Σ|w|wq / Σ|w|q²``, for each block's codes at 1/scale."""
        q = self.q
        np.multiply(self.w, per_weight, out=q)
        round_to(q, grid)
        product = np.einsum("bn,bn->n", self.moment, q)
        q *= q
        square = np.einsum("bn,bn->n", self.importance, q)
        square[square == 0] = 1  # no codes but zero
        return product, product / square


def round_to(q: np.ndarray, grid: Grid) -> None:
    """Round to the signed codes of a grid, in place."""
    np.rint(q, out=q)
    np.clip(q, np.float32(grid.low), np.float32(grid.high), out=q)


def inverse(scale: np.ndarray) -> np.ndarray:
    """1/scale, and 0 where a scale is too small for a float32 to hold its inverse times any code."""
    live = np.abs(scale) >= np.float32(1e-30)
    if live.all():
        return np.float32(1) / scale
    per_code: np.ndarray = np.zeros_like(scale)
    np.divide(np.float32(1), scale, out=per_code, where=live)
    return per_code


def _to_float16(scale: np.ndarray, extreme: np.ndarray) -> np.ndarray:
    """Scales as the file holds them: no live block is left with a scale of zero, none becomes infinite.

    Among float16's subnormals the steps are coarse, so a scale is rounded away from zero there: rounding it
    down would clip the largest weights.
    """
    tiny = (np.abs(scale) < NORMAL) & (extreme != 0)
    if tiny.any():
        steps = np.maximum(np.ceil(np.abs(scale) / SMALLEST), np.float32(1))
        sign = np.where(scale == 0, -extreme, scale)
        scale = np.where(tiny, np.copysign(steps * SMALLEST, sign), scale)
    bounded: np.ndarray = np.clip(scale, -LARGEST, LARGEST)
    return bounded.astype(np.float16)
