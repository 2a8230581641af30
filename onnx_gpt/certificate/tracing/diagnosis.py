"""What a weight is that is not the source's: nothing, another one, itself turned round."""

from __future__ import annotations

import numpy as np

from exporter.weights import Weight
from onnx_gpt.certificate.tracing.expected import Expected
from onnx_gpt.certificate.tracing.stored import Stored

ROWS = 8
"""Rows that weights are told apart by."""

ALIKE = 0.35
"""Relative error up to which rows are taken for the same: 2-bit codes are at 0.3, other weights at 1.4."""


def diagnose(stored: Stored, at: int, weight: Weight, role: str, kind: str, expected: Expected) -> str:
    """In words, or empty where it is like nothing that is known.

    Args:
        at: first row of the part within what is stored.
        weight: what should be there, under ``role``.
    """
    total = weight.shape[0]
    first = stored.rows(at, at + min(ROWS, total))[0]
    whole = stored.rows(at, at + total)[0]
    if not whole.any():
        return "it is zeroed"
    empty = ~whole.reshape(total, -1).any(axis=1) & weight.read().reshape(total, -1).any(axis=1)
    if empty.any():
        rows = np.flatnonzero(empty)
        return f"{len(rows)} of its {total} rows are zeroed, the first being {rows[0]}"
    if _alike(first, weight.rows(0, len(first))):
        return ""  # it is the right one, and not near enough
    if len(weight.shape) == 2 and weight.shape[0] == weight.shape[1]:
        turned = weight.columns(0, min(ROWS, total)).T
        if _alike(first, turned):
            return "it is transposed"
    for name, other in expected.weights.items():
        other_role, _, other_kind = name.rpartition(".")
        if other_kind != kind or other_role == role or other.shape != weight.shape:
            continue
        if _alike(first, other.rows(0, len(first))):
            return f"it holds {other_role}"
    return _moved(whole, weight) if len(weight.shape) == 2 else ""


def _moved(whole: np.ndarray, weight: Weight) -> str:
    """Whether rows are the source's in another order."""
    theirs = weight.read()
    norms = np.linalg.norm(theirs, axis=1)
    close = np.abs(np.linalg.norm(whole, axis=1) - norms) <= ALIKE * norms
    if close.all():
        return ""
    ordered = np.sort(np.linalg.norm(whole, axis=1)), np.sort(norms)
    return "its rows are in another order" if _alike(*ordered, limit=0.05) else ""


def _alike(ours: np.ndarray, theirs: np.ndarray, limit: float = ALIKE) -> bool:
    size = float(np.linalg.norm(theirs))
    return size > 0 and float(np.linalg.norm(ours - theirs)) <= limit * size
