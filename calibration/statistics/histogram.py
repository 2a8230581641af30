"""How often values of each size occur, in bins of a constant ratio, and the ranges to be read off it.

A bin spans 1/16 of an octave, so a value is known to ±2.2 % whatever its size: nothing has to be known of the range
beforehand, bins of two shards are the same bins, and percentile, entropy and least-error ranges all come from one pass.
Sizes below 2⁻⁴⁰ count as zero and those above 2⁴⁰ share the last bin.
"""

from __future__ import annotations

import dataclasses

import numpy as np

OCTAVES, STEPS = 40, 16
BINS = 2 * OCTAVES * STEPS
LEVELS = 2048
"""Equal bins into which the entropy method cuts a range; TensorRT's number."""


@dataclasses.dataclass
class Histogram:
    """What has been seen so far.

    Attributes:
        negative, positive: int64 ``[BINS]``, counts by size.
        zeros: values of no size.
        low, high: the exact ends; 0 before the first value.
    """

    negative: np.ndarray
    positive: np.ndarray
    zeros: int
    low: float
    high: float

    @classmethod
    def empty(cls) -> Histogram:
        return cls(np.zeros(BINS, np.int64), np.zeros(BINS, np.int64), 0, 0.0, 0.0)

    def add(self, batch: np.ndarray) -> Histogram:
        """Values of any shape."""
        values = batch.reshape(-1)
        if not len(values):
            return self
        size = np.abs(values)
        bins = _bins(size)
        live = size >= 2.0**-OCTAVES
        self.negative += np.bincount(bins[live & (values < 0)], minlength=BINS)
        self.positive += np.bincount(bins[live & (values > 0)], minlength=BINS)
        self.zeros += int(len(values) - live.sum())
        self.low = min(self.low, float(values.min()))
        self.high = max(self.high, float(values.max()))
        return self

    def merge(self, other: Histogram) -> Histogram:
        return Histogram(
            self.negative + other.negative,
            self.positive + other.positive,
            self.zeros + other.zeros,
            min(self.low, other.low),
            max(self.high, other.high),
        )

    def finish(self) -> Distribution:
        """The values seen, by size from the least to the greatest."""
        centre = 2.0 ** ((np.arange(BINS) + 0.5) / STEPS - OCTAVES)
        values = np.concatenate([-centre[::-1], [0.0], centre])
        counts = np.concatenate([self.negative[::-1], [self.zeros], self.positive])
        seen = counts > 0
        return Distribution(np.clip(values[seen], self.low, self.high), counts[seen], self.low, self.high)


def _bins(size: np.ndarray) -> np.ndarray:
    """The bin of each size; what is too small or too large gets the first or the last."""
    with np.errstate(divide="ignore"):
        place = np.floor((np.log2(size.astype(np.float64)) + OCTAVES) * STEPS)
    bins: np.ndarray = np.clip(place, 0, BINS - 1).astype(np.int64)
    return bins


Range = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Distribution:
    """A finished histogram.

    Attributes:
        values: float64, rising; the middle of each bin that is not empty.
        counts: int64, of each.
        low, high: the exact ends, with zero between them.
    """

    values: np.ndarray
    counts: np.ndarray
    low: float
    high: float

    def everything(self) -> Range:
        """From the least value to the greatest."""
        return self.low, self.high

    def percentile(self, share: float) -> Range:
        """The range that holds a share of the values, 0 < share ≤ 1, as much cut off above as below."""
        if share >= 1 or not len(self.values):
            return self.everything()
        cumulative = np.cumsum(self.counts) / self.counts.sum()
        tail = (1 - share) / 2
        low = self.values[int(np.searchsorted(cumulative, tail, side="right"))]
        high = self.values[int(np.searchsorted(cumulative, 1 - tail - 1e-12, side="left"))]
        return min(float(low), 0.0), max(float(high), 0.0)

    def least_error(self, bits: int = 8, power: float = 2.4, candidates: int = 100) -> Range:
        """The range, a fraction of everything, whose grid of 2^bits levels has the least ``Σ |x − x̂|^power``."""
        shrunk = [i / candidates for i in range(candidates, 0, -1)]
        ranges = [(self.low * f, self.high * f) for f in shrunk]
        return min(ranges, key=lambda ends: self._error(ends, bits, power))

    def entropy(self, bits: int = 8) -> Range:
        """The symmetric range whose grid loses the least information, by TensorRT's method.

        Of `LEVELS` equal bins of |x| the first n are kept, what lies beyond is counted into the last of them, and this
        is compared (KL) with itself on 2^(bits−1) levels. Sources: Migacz, "8-bit inference with TensorRT", 2017.
        """
        largest = max(-self.low, self.high)
        if largest == 0:
            return 0.0, 0.0
        place = np.minimum((np.abs(self.values) / largest * LEVELS).astype(np.int64), LEVELS - 1)
        counts = np.bincount(place, self.counts, LEVELS)
        levels = 1 << (bits - 1)
        kept = range(levels, LEVELS + 1, 8)
        best = min(kept, key=lambda n: _information_lost(counts, n, levels))
        edge = largest * best / LEVELS
        return max(self.low, -edge), min(self.high, edge)

    def _error(self, ends: Range, bits: int, power: float) -> float:
        low, high = ends
        step = (high - low) / ((1 << bits) - 1)
        if step == 0:
            return float((self.counts * np.abs(self.values) ** power).sum())
        zero = np.rint(low / step)
        q = np.clip(np.rint(self.values / step), zero, zero + (1 << bits) - 1)
        return float((self.counts * np.abs(self.values - q * step) ** power).sum())


def _information_lost(counts: np.ndarray, kept: int, levels: int) -> float:
    """KL of the first bins, with the rest counted into the last, from the same in fewer levels."""
    p = counts[:kept].astype(np.float64)
    live = p > 0
    level = np.arange(kept) * levels // kept
    total = np.bincount(level, p, levels)  # outliers do not tell the grid where they are
    bins = np.bincount(level, live, levels)
    q = np.where(live, (total / np.maximum(bins, 1))[level], 0.0)
    p[-1] += counts[kept:].sum()
    live = p > 0
    q[live] = np.maximum(q[live], 1e-9)  # the last bin may hold nothing but outliers
    p, q = p / p.sum(), q / q.sum()
    return float((p[live] * np.log(p[live] / q[live])).sum())
