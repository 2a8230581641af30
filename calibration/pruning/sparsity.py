"""How many weights go, and in which pattern."""

from __future__ import annotations

import dataclasses
import re

import numpy as np

from exporter.errors import Exit, OnnxGptError, unsupported

LONGEST_GROUP = 32
"""Columns of a group in an N:M pattern, at most: hardware has 4, papers 8."""


@dataclasses.dataclass(frozen=True)
class Sparsity:
    """The share of a matrix's weights that become zero.

    Attributes:
        share: above 0, below 1.
        group, kept: N:M sparsity keeps ``kept`` (N) of each ``group`` (M) columns of a row; a group of 0 is no
            pattern.
    """

    share: float
    group: int = 0
    kept: int = 0

    def zeros(self, count: int) -> int:
        """How many of so many weights become zero."""
        return round(self.share * count)


def sparsity_of(share: float | None, pattern: str | None) -> Sparsity:
    """What ``--sparsity`` and ``--pattern`` say together.

    Raises:
        OnnxGptError: ``prune-invalid`` (exit 2).
    """
    if pattern is None:
        if share is None:
            raise invalid(
                "nothing is said of what is to go",
                "give --sparsity 0.5, --pattern 2:4 or --structured ffn=0.25",
            )
        if not 0 < share < 1:
            raise invalid(f"a sparsity of {share} leaves nothing to do, or nothing", "give --sparsity 0.5")
        return Sparsity(share)
    found = re.fullmatch(r"(\d+):(\d+)", pattern)
    kept, group = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 0 < kept < group <= LONGEST_GROUP or group & (group - 1):
        raise invalid(f"{pattern!r} is no N:M pattern", "give --pattern 2:4 or 4:8")
    if share not in (None, 1 - kept / group):
        raise invalid(
            f"the pattern {pattern} is a sparsity of {1 - kept / group:g}, and {share:g} is asked for",
            "drop --sparsity",
        )
    return Sparsity(1 - kept / group, group, kept)


def least(scores: np.ndarray, sparsity: Sparsity, *, by_row: bool) -> np.ndarray:
    """Which weights have the least scores.

    Args:
        scores: float ``[R, K]``.
        by_row: choose the same number in every row; else in the whole matrix. A pattern chooses in every group.

    Returns:
        bool ``[R, K]``, true where a weight is to become zero.
    """
    R, K = scores.shape
    if sparsity.group:
        require_groups(K, sparsity)
        rows = scores.reshape(-1, sparsity.group)
        return _least(rows, sparsity.group - sparsity.kept).reshape(R, K)
    rows = scores if by_row else scores.reshape(1, -1)
    return _least(rows, sparsity.zeros(rows.shape[1])).reshape(R, K)


def _least(rows: np.ndarray, count: int) -> np.ndarray:
    chosen = np.zeros(rows.shape, bool)
    if count:
        np.put_along_axis(chosen, np.argpartition(rows, count - 1, axis=1)[:, :count], True, axis=1)
    return chosen


def require_groups(width: int, sparsity: Sparsity) -> None:
    """Refuse a pattern that the columns do not split into.

    Raises:
        OnnxGptError: ``prune-pattern`` (exit 3).
    """
    if width % sparsity.group:
        raise unsupported(
            "prune-pattern",
            f"{width} columns do not split into groups of {sparsity.group}",
            "use a shorter pattern, or --sparsity without one",
        )


def invalid(cause: str, remedy: str) -> OnnxGptError:
    """Settings that do not fit each other."""
    return OnnxGptError("prune-invalid", cause, remedy, exit=Exit.USAGE)
