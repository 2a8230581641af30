"""Methods of setting single weights to zero. A method is a file here, found because it exists.

It offers ``READS_TEXT``, and ``prune(rows, hessian, sparsity, name)``: a whole matrix ``[R, K]`` float32 with some
weights zero and the others possibly changed. ``hessian`` is ``X·Xᵀ / T`` of the matrix's inputs, float64 ``[K,
K]``, or None for a method that reads no text.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Protocol, cast

import numpy as np

from calibration.pruning.sparsity import Sparsity, invalid
from exporter.discovery import modules_of


class Method(Protocol):
    """What a method's file offers."""

    READS_TEXT: bool

    @staticmethod
    def prune(rows: np.ndarray, hessian: np.ndarray | None, sparsity: Sparsity, name: str) -> np.ndarray: ...


@functools.cache
def methods() -> Mapping[str, Method]:
    """Methods by file name."""
    return cast(Mapping[str, Method], modules_of(__name__))


def method_of(name: str) -> Method:
    """The method of a name.

    Raises:
        OnnxGptError: ``prune-invalid`` (exit 2).
    """
    if name not in methods():
        raise invalid(f"there is no pruning method {name!r}", f"use one of {', '.join(methods())}")
    return methods()[name]
