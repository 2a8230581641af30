"""How exact a reference is: it is compared with itself, computed in other ways. Nothing here is a matter of taste.

A float32 graph and its reference differ by the order in which sums are taken. How much that is depends on the model:
1e-7 of the logits for two layers, a thousand times as much for a deep one. So the reference says it: PyTorch in float32
is held against float64 and against another attention; a graph against onnxruntime with and without its optimizer, and
against itself with every weight moved to a neighbour among the float32 numbers. Measured over 80 decoders of eight
families, our fused graphs are at 0.7 to 1.3 times that noise in the mean and at 0.5 to 1.5 times at the worst position;
a wrong epsilon is at some hundred times.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from onnx_gpt.report import Deviation, Noise

FACTOR, WORST_FACTOR = 4.0, 8.0
"""Multiples of the noise that a float candidate may be away: in the mean, and at the worst position."""
POSITIONS = 256
"""Positions that noise is measured on: in float64, twice the time of as many tokens of the text."""


class Varying(Protocol):
    """A reference that can be computed in several ways."""

    def logits(self, tokens: np.ndarray) -> np.ndarray: ...

    def alternatives(self, tokens: np.ndarray) -> Iterator[tuple[str, np.ndarray]]: ...


def measure(reference: Varying, windows: np.ndarray) -> Noise:
    """A reference's noise on the first windows ``[N, S]``."""
    some = windows[: max(1, POSITIONS // windows.shape[1]), :POSITIONS]
    usual = [reference.logits(window[None]) for window in some]
    ways: dict[str, list[np.ndarray]] = {}
    spread = max(float(spread_of(logits).max()) for logits in usual)
    # One way after the other, each on all windows: to change a model costs more than to run it.
    for name, other in reference.alternatives(some):
        ways[name] = [row_differences(other[i], usual[i][0]) for i in range(len(some))]
    found = {name: deviation(np.concatenate(rows)) for name, rows in ways.items()}
    single = np.finfo(np.float32)
    # An untrained head gives all tokens the same: the spread is 0.
    floor = max(spread * float(single.eps) / 2, float(single.tiny))
    return Noise(
        worst=max([floor, *(way.worst for way in found.values())]),
        rms=max([floor, *(way.rms for way in found.values())]),
        positions=int(some.size),
        ways=found,
    )


def row_differences(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Root mean square over the vocabulary of each row's difference, less its mean: ``[..., V]`` → float64 ``[...]``.

    A constant that is added to all logits of a position changes no probability, so it does not count.
    """
    return spread_of(ours.astype(np.float64) - theirs)


def spread_of(rows: np.ndarray) -> np.ndarray:
    """Standard deviation of each row."""
    spread: np.ndarray = rows.std(-1, dtype=np.float64)
    return spread


def deviation(rows: np.ndarray) -> Deviation:
    """The worst and the root mean square of what `row_differences` gave."""
    return Deviation(worst=float(rows.max()), rms=float(np.sqrt((rows**2).mean())))
