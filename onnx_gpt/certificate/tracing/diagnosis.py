"""What a weight is that is not the source's: nothing, another one, itself turned round."""

from __future__ import annotations

import numpy as np

from exporter.weights import Weight
from onnx_gpt.certificate.tracing.expected import Expected
from onnx_gpt.certificate.tracing.stored import Stored

ROWS = 8
"""Rows that matrices are told apart by; vectors are short, and told apart by all of their numbers."""

ALIKE = 0.7
"""Relative error up to which rows are taken for the same: 2-bit codes are at 0.3 to 0.5, other weights at 1.4."""
VECTORS = 0.35
"""The same of vectors, which are no codes, but may have been corrected for some; and of the norms of rows."""


def diagnose(stored: Stored, at: int, weight: Weight, role: str, kind: str, expected: Expected) -> str:
    """In words, or empty where it is like nothing that is known.

    Args:
        at: first row of the part within what is stored.
        weight: what should be there, under ``role``.
    """
    total = weight.shape[0]
    matrix = len(weight.shape) == 2
    limit = ALIKE if matrix else VECTORS
    first = stored.rows(at, at + (min(ROWS, total) if matrix else total))[0]
    whole = stored.rows(at, at + total)[0]
    if not whole.any():
        return "it is zeroed"
    empty = ~whole.reshape(total, -1).any(axis=1) & weight.read().reshape(total, -1).any(axis=1)
    if empty.any():
        rows = np.flatnonzero(empty)
        return f"{len(rows)} of its {total} rows are zeroed, the first being {rows[0]}"
    if _alike(first, weight.rows(0, len(first)), limit):
        return ""  # it is the right one, and not near enough
    if matrix and weight.shape[0] == weight.shape[1]:
        turned = weight.columns(0, min(ROWS, total)).T
        if _alike(first, turned, limit):
            return "it is transposed"
    for name, other in expected.weights.items():
        other_role, _, other_kind = name.rpartition(".")
        if other_kind != kind or other_role == role or other.shape != weight.shape:
            continue
        if _alike(first, other.rows(0, len(first)), limit):
            return f"it holds {other_role}"
    return _moved(whole, weight) if matrix else ""


def _moved(whole: np.ndarray, weight: Weight) -> str:
    """Whether rows are the source's in another order."""
    theirs = weight.read()
    norms = np.linalg.norm(theirs, axis=1)
    close = np.abs(np.linalg.norm(whole, axis=1) - norms) <= VECTORS * norms
    if close.all():
        return ""
    ordered = np.sort(np.linalg.norm(whole, axis=1)), np.sort(norms)
    return "its rows are in another order" if _alike(*ordered, 0.05) else ""


def _alike(ours: np.ndarray, theirs: np.ndarray, limit: float) -> bool:
    size = float(np.linalg.norm(theirs))
    return size > 0 and float(np.linalg.norm(ours - theirs)) <= limit * size
