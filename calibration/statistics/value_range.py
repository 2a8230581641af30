"""How large the values of a tensor are, beside what float16 and int8 can hold."""

from __future__ import annotations

import dataclasses

import numpy as np

from calibration.int8 import LARGEST
from calibration.statistics.half_range import HalfRange
from graph_passes.lowering.half import HALF_MAX

LOWEST, BINS = -64, 96
"""Powers of two by which values are counted: from 2^LOWEST on, BINS of them; smaller ones fall into the first."""


@dataclasses.dataclass
class ValueRange:
    """What has been seen so far. Values that are not finite are counted and left out of all else.

    Attributes:
        half: beside float16.
        counts: values by the power of two that |x| reaches, zeros left out.
        energies: Σ x² of the same.
        not_finite: values that are NaN or infinite.
    """

    half: HalfRange
    counts: np.ndarray
    energies: np.ndarray
    not_finite: int

    @classmethod
    def empty(cls) -> ValueRange:
        return cls(HalfRange.empty(), np.zeros(BINS, np.int64), np.zeros(BINS), 0)

    @property
    def count(self) -> int:
        """Values, zeros among them."""
        return self.half.count

    def add(self, batch: np.ndarray) -> ValueRange:
        """Values ``[..., K]``, float32."""
        rows = batch.reshape(-1, batch.shape[-1])
        if not rows.size:
            return self
        finite = np.isfinite(rows)
        if not finite.all():
            self.not_finite += int(rows.size - finite.sum())
            rows = np.where(finite, rows, np.float32(0))
        self.half.add(rows)
        flat = rows[rows != 0]
        bins = np.clip(np.frexp(flat)[1] - LOWEST, 0, BINS - 1)
        self.counts += np.bincount(bins, minlength=BINS)
        self.energies += np.bincount(bins, weights=flat.astype(np.float64) ** 2, minlength=BINS)
        return self

    def merge(self, other: ValueRange) -> ValueRange:
        return ValueRange(
            self.half.merge(other.half),
            self.counts + other.counts,
            self.energies + other.energies,
            self.not_finite + other.not_finite,
        )

    def finish(self) -> Range:
        fit, energy = self.half.finish(), self.half.energy
        loss, zeroed = self._int8()
        return Range(
            largest=fit.largest,
            rms=(energy / self.count) ** 0.5 if self.count else 0.0,
            square=fit.square,
            half_error=fit.rounding,
            int8_error=(loss / energy) ** 0.5 if energy else 0.0,
            int8_zeroed=zeroed / self.count if self.count else 0.0,
            not_finite=self.not_finite,
        )

    def _int8(self) -> tuple[float, int]:
        """Σ of squared errors on 8 bits with one symmetric scale, and how many values other than 0 become 0.

        Values below half a step lose all that they are; others the step's own spread, step²/12. A power of two is
        counted on one side or the other.
        """
        step = self.half.largest / LARGEST
        if step == 0:
            return 0.0, 0
        first = min(max(int(np.frexp(step / 2)[1]) - LOWEST, 0), BINS)
        kept = int(self.counts[first:].sum())
        return float(self.energies[:first].sum()) + kept * step**2 / 12, int(self.counts[:first].sum())


@dataclasses.dataclass(frozen=True)
class Range:
    """How a tensor's values lie.

    Attributes:
        largest: of |x|.
        rms: their size, root mean square.
        square: largest Σ x² of a row.
        half_error: what rounding to float16 takes, over their size (`HalfFit.rounding`).
        int8_error: the same of 8 bits with one symmetric scale that reaches the largest, to about a tenth.
        int8_zeroed: share of values other than 0 that such a grid makes 0.
        not_finite: values that are NaN or infinite.
    """

    largest: float
    rms: float
    square: float
    half_error: float
    int8_error: float
    int8_zeroed: float
    not_finite: int

    @property
    def half_headroom(self) -> float:
        """How many times larger the largest value may get before float16 does not hold it."""
        return HALF_MAX / self.largest if self.largest else float("inf")
