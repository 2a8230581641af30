"""What is done to weights before anyone reads them: cut, stacked, reordered, turned, shifted, scaled."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from exporter.block_codes import BlockFormat, Coded
from exporter.weights import Weight


@dataclasses.dataclass(frozen=True, eq=False)
class Rows(Weight):
    """Some rows of another weight, as ``(start, stop)`` ranges in the order wanted."""

    base: Weight
    ranges: tuple[tuple[int, int], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(stop - start for start, stop in self.ranges), *self.base.shape[1:])

    def _within(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        at = 0
        for first, last in self.ranges:
            lo, hi = max(start, at), min(stop, at + last - first)
            if lo < hi:
                yield first + lo - at, first + hi - at
            at += last - first

    def rows(self, start: int, stop: int) -> np.ndarray:
        return np.concatenate([self.base.rows(a, b) for a, b in self._within(start, stop)])

    @property
    def format(self) -> BlockFormat | None:
        return self.base.format

    def coded(self, start: int, stop: int) -> Coded:
        return _join([self.base.coded(a, b) for a, b in self._within(start, stop)])


@dataclasses.dataclass(frozen=True, eq=False)
class Permuted(Weight):
    """Another weight's rows reordered: row i is ``base[order[i]]`` (llama.cpp's rotary layout undone)."""

    base: Weight
    order: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.order), *self.base.shape[1:])

    def _span(self, start: int, stop: int) -> tuple[int, int, np.ndarray]:
        wanted = self.order[start:stop]
        lo = int(wanted.min())
        return lo, int(wanted.max()) + 1, wanted - lo

    def rows(self, start: int, stop: int) -> np.ndarray:
        lo, hi, index = self._span(start, stop)
        rows: np.ndarray = self.base.rows(lo, hi)[index]
        return rows

    @property
    def format(self) -> BlockFormat | None:
        return self.base.format

    def coded(self, start: int, stop: int) -> Coded:
        lo, hi, index = self._span(start, stop)
        read = self.base.coded(lo, hi)
        return Coded(
            read.codes[index], read.scale[index], None if read.minimum is None else read.minimum[index]
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Stack(Weight):
    """Weights one under the other: packed QKV, gate over up."""

    parts: tuple[Weight, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])

    def _within(self, start: int, stop: int) -> Iterator[tuple[Weight, int, int]]:
        at = 0
        for part in self.parts:
            lo, hi = max(start, at), min(stop, at + part.shape[0])
            if lo < hi:
                yield part, lo - at, hi - at
            at += part.shape[0]

    def rows(self, start: int, stop: int) -> np.ndarray:
        return np.concatenate([part.rows(a, b) for part, a, b in self._within(start, stop)])

    @property
    def format(self) -> BlockFormat | None:
        first = self.parts[0].format
        return first if all(part.format == first for part in self.parts) else None

    def coded(self, start: int, stop: int) -> Coded:
        return _join([part.coded(a, b) for part, a, b in self._within(start, stop)])


def _join(parts: list[Coded]) -> Coded:
    minima = [part.minimum for part in parts if part.minimum is not None]
    return Coded(
        np.concatenate([part.codes for part in parts]),
        np.concatenate([part.scale for part in parts]),
        np.concatenate(minima) if minima else None,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Transposed(Weight):
    """A matrix stored the other way round (GPT-2's Conv1D keeps ``[in, out]``)."""

    base: Weight

    @property
    def shape(self) -> tuple[int, ...]:
        rows, columns = self.base.shape
        return columns, rows

    def rows(self, start: int, stop: int) -> np.ndarray:
        return np.ascontiguousarray(self.base.columns(start, stop).T)

    def columns(self, start: int, stop: int) -> np.ndarray:
        return np.ascontiguousarray(self.base.rows(start, stop).T)


def transposed(weight: Weight) -> Weight:
    """A matrix the other way round; twice is not at all."""
    return weight.base if isinstance(weight, Transposed) else Transposed(weight)


@dataclasses.dataclass(frozen=True, eq=False)
class Plus(Weight):
    """Another weight with a constant added: the 1 in Gemma's ``1 + γ``."""

    base: Weight
    constant: float

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    def rows(self, start: int, stop: int) -> np.ndarray:
        return self.base.rows(start, stop) + np.float32(self.constant)


def plus(weight: Weight, constant: float) -> Weight:
    """A constant added; one that was subtracted before is taken back, where adding it would round twice."""
    if isinstance(weight, Plus) and weight.constant == -constant:
        return weight.base
    return Plus(weight, constant)


@dataclasses.dataclass(frozen=True, eq=False)
class Times(Weight):
    """Another weight multiplied by a constant: Granite's multipliers. Codes stay; their scales are multiplied."""

    base: Weight
    constant: float

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    def rows(self, start: int, stop: int) -> np.ndarray:
        return self.base.rows(start, stop) * np.float32(self.constant)

    @property
    def format(self) -> BlockFormat | None:
        own = self.base.format
        return None if own is None else dataclasses.replace(own, scale_dtype="float32")

    def coded(self, start: int, stop: int) -> Coded:
        own, constant = self.base.coded(start, stop), np.float32(self.constant)
        minimum = None if own.minimum is None else own.minimum.astype(np.float32) * constant
        return Coded(own.codes, own.scale.astype(np.float32) * constant, minimum)


def times(weight: Weight, constant: float) -> Weight:
    """Multiplied by a constant; what was divided by it before is taken back, where multiplying would round twice."""
    if isinstance(weight, Times) and math.isclose(weight.constant * constant, 1.0, rel_tol=1e-12):
        return weight.base
    return Times(weight, constant)
