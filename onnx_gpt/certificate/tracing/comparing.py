"""Holds what is stored against what is expected: floats bit for bit, codes within their steps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import onnx_ir as ir

from exporter.weights import Weight
from graph_passes.matching import role_of
from onnx_gpt.certificate.tracing.diagnosis import diagnose
from onnx_gpt.certificate.tracing.expected import Expected, is_neutral, stacked
from onnx_gpt.certificate.tracing.found import Use, uses_of
from onnx_gpt.certificate.tracing.stored import Blocks

PIECE = 4 << 20
"""Bytes of float32 that are compared at once."""

UNTRACED_BYTES = 64
"""Bytes of a constant from which on it is said where it is traced to nothing."""

SAMPLES = 3
"""Runs of rows of a matrix that are compared where not all are."""

FEWEST = 8
"""Rows from which on a column has a mean."""

CLIPPED = 1.0
"""Steps, in root mean square, of codes at an end of their range: those of 2 bits are that every second time."""

SMALLEST = np.float32(2.0**-100)
"""Stands for a row of nothing, whose error can lie along nothing."""

ROUNDING = 1e-5
"""Relative to a row's root mean square: what float32 sums of a rotation may differ by in another order."""


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """What codes may be off by.

    Attributes:
        inner: steps of its block, of a code inside its range; half of one where codes are rounded to nearest.
        end: the same of a code at an end of its range, which larger weights are clipped to.
        rms: steps of a row, in root mean square; of a column too, unless codes were chosen.
        along: the same of that part of a row's error which lies along the row itself; None where codes were not chosen
            for anything but the weights.
        narrowest: columns below which right rows may be beyond all that.
    """

    inner: float
    end: float
    rms: float
    along: float | None = None
    narrowest: int = 1


NEAREST = Tolerance(0.51, 2.5, 0.5)
"""Round to nearest: errors are spread evenly over a step, 0.29 in the mean, and scales clip the largest weights."""

SCALED = Tolerance(1.0, 3.0, 0.5)
"""The same of channels that were scaled by factors which the codes themselves have to tell (AWQ, w8a8): the largest
weights of a column are off by its factor's error. Matrices of 64 rows are at 0.61."""

CHOSEN = Tolerance(math.inf, math.inf, 5.0, along=0.45, narrowest=64)
"""Codes that were chosen for a layer's outputs (GPTQ) take over the errors of the columns before them, and go far where
inputs never do. But that is at right angles to the weights: what they keep of the weights themselves is nearly all.
Right rows are off by up to 0.35 steps along themselves (2 bits; 0.30 of 4, 0.18 of 8), rows with half their scale by
0.52 at least, those of another layer by 3 (docs/experiments.md). In few columns errors lie along the row by chance: of
3,840 right rows of a random matrix, 222 of 4 columns are beyond it (2 bits; 67 of 4, 47 of 8), 27 of 16, 2 of 32, and
none of 48 or more."""

KEPT = Tolerance(0.02, 0.02, 0.01)
"""The source's own codes: the same numbers, computed in another order."""


def tolerance_of(quantize: str, method: str) -> Tolerance:
    """The tolerance of a scheme: values of ``--quantize`` and ``--method``."""
    if quantize == "keep":
        return KEPT
    if method == "gptq":
        return CHOSEN
    return SCALED if quantize == "w8a8" or method == "awq" else NEAREST


@dataclasses.dataclass(frozen=True)
class Trace:
    """Where each weight of a graph comes from.

    Attributes:
        exact: roles whose floats are the source's, bit for bit.
        rounded: roles whose codes or float16 are the source's within the tolerance: root mean square of the error, in
            steps, or relative for float16.
        untraced: constants that are no weights of the source's, or are kept in a way that is not known here.
        failures: what is not the source's, and what it is instead where that can be told.
    """

    exact: tuple[str, ...]
    rounded: Mapping[str, float]
    untraced: tuple[str, ...]
    failures: tuple[str, ...]

    @property
    def verdict(self) -> Literal["pass", "fail"]:
        """``pass`` or ``fail``."""
        return "fail" if self.failures else "pass"


def trace(
    model: ir.Model, expected: Expected, tolerance: Tolerance = NEAREST, rows: int | None = None
) -> Trace:
    """Trace the weights of a finished graph to the source.

    Args:
        model: as `exporter.onnx_format.reader.read_file` reads it; its nodes carry roles.
        expected: see `expected_of`.
        rows: compare so many rows of each matrix, at its beginning, middle and end; all where None.
    """
    exact: dict[str, None] = {}
    rounded: dict[str, float] = {}
    failures: dict[str, None] = {}
    untraced: dict[str, None] = {}
    seen: set[str] = set()
    traced: set[ir.Value] = set()
    for use in uses_of(model, expected):
        parts = expected.parts(use.role, use.kind) if use.parts is None else use.parts
        name = use.role if use.kind == "weight" else f"{use.role}.{use.kind}"
        if isinstance(use.stored, str) or not parts:
            why = use.stored if isinstance(use.stored, str) else "the source has no such weight"
            untraced[f"{name}: {why}"] = None
            continue
        seen.update(f"{role}.{use.kind}" for role, _ in parts)
        traced.update(use.initializers)
        found = _compared(use, parts, expected, tolerance, rows)
        failures.update(dict.fromkeys(found.failures))
        untraced.update(dict.fromkeys(found.untraced))
        if not found.failures and not found.untraced:
            target = exact if found.error is None else rounded
            target[name] = found.error  # type: ignore[assignment]
    rest = dict(_rest(model, traced))
    for entry, weight in _unseen(expected, seen, untraced):
        # Codes take a bit a weight at least: what is traced to nothing may be it, in a way that is not known here.
        hidden = any(nbytes >= int(np.prod(weight.shape)) // 8 for nbytes in rest.values())
        (untraced if hidden else failures)[f"{entry}: no node of the graph reads it"] = None
    untraced.update(dict.fromkeys(rest))
    return Trace(tuple(exact), rounded, tuple(untraced), tuple(failures))


@dataclasses.dataclass(frozen=True)
class _Found:
    """``error`` is None where all is exact."""

    failures: tuple[str, ...]
    error: float | None
    untraced: tuple[str, ...] = ()


def _compared(
    use: Use, parts: Sequence[tuple[str, Weight]], expected: Expected, tolerance: Tolerance, rows: int | None
) -> _Found:
    assert not isinstance(use.stored, str)
    whole = stacked(list(parts))
    if isinstance(use.stored, Blocks) and len(whole.shape) == 2:
        use = dataclasses.replace(use, stored=use.stored.cut(whole.shape[1]))
    assert not isinstance(use.stored, str)
    suffix = "" if use.kind == "weight" else f".{use.kind}"
    if whole.shape != use.stored.shape:
        was = f"it has the dims {list(use.stored.shape)}, the source {list(whole.shape)}"
        return _Found((f"{use.role}{suffix}: {was}",), None)
    failures: list[str] = []
    untraced: list[str] = []
    errors: list[float] = []
    at = 0
    for role, weight in parts:
        sums = _Sums(tolerance, expected.mixed)
        for start, stop in _ranges(weight, rows):
            sums.add(weight.rows(start, stop), *use.stored.rows(at + start, at + stop))
        if sums.wrong:
            what = diagnose(use.stored, at, weight, role, use.kind, expected)
            if expected.corrected and use.kind == "bias" and not what:
                untraced.append(f"{role}{suffix}: it makes up for rounding on a text")
            elif len(weight.shape) == 2 and weight.shape[1] < tolerance.narrowest and not what:
                untraced.append(f"{role}{suffix}: chosen on text, and too narrow to tell right from wrong")
            else:
                failures.append(f"{role}{suffix}: {what or sums.wrong}")
        elif not sums.exact:
            errors.append(sums.rms)
        at += weight.shape[0]
    return _Found(tuple(failures), max(errors) if errors else None, tuple(untraced))


def _ranges(weight: Weight, rows: int | None) -> Iterator[tuple[int, int]]:
    """All rows by pieces, or some at the beginning, in the middle and at the end."""
    total = weight.shape[0]
    if rows is None or total <= rows or len(weight.shape) == 1:
        yield from weight.pieces(PIECE)
        return
    run = max(1, rows // SAMPLES)
    starts = sorted({round(i * (total - run) / (SAMPLES - 1)) for i in range(SAMPLES)})
    yield from ((start, start + run) for start in starts)


class _Sums:
    """Errors of one weight, by rows and columns, piece by piece; ``wrong`` says what is beyond the tolerance."""

    def __init__(self, tolerance: Tolerance, mixed: bool) -> None:
        self.tolerance, self.mixed = tolerance, mixed
        self.exact = True
        self.wrong = ""
        self._off: np.ndarray | float = 0.0
        self._allowed: np.ndarray | float = 0.0
        self._rows = 0
        self._square = self._count = 0.0

    @property
    def rms(self) -> float:
        return float(np.sqrt(self._square / max(self._count, 1)))

    def add(
        self, theirs: np.ndarray, ours: np.ndarray, step: np.ndarray | None, at_end: np.ndarray | None
    ) -> None:
        """``theirs`` is the source's."""
        if step is None or at_end is None:
            self._floats(theirs, ours)
        else:
            self._codes(theirs, ours, step, at_end)

    def _floats(self, theirs: np.ndarray, ours: np.ndarray) -> None:
        if np.array_equal(theirs, ours):
            return
        size = np.sqrt(np.square(theirs, dtype=np.float64).mean(axis=-1, keepdims=True)) + 1e-30
        error = np.abs(theirs.astype(np.float64) - ours) / size
        halved = np.array_equal(theirs.astype(np.float16).astype(np.float32), ours)
        if halved or (self.mixed and error.max() <= ROUNDING):
            self.exact = False
            self._square += float(np.square(error).sum())
            self._count += error.size
        else:
            self.wrong = f"it differs from the source by up to {error.max():.2g} of a row's root mean square"

    def _codes(self, theirs: np.ndarray, ours: np.ndarray, step: np.ndarray, at_end: np.ndarray) -> None:
        self.exact = False
        # A block of nothing has a scale of 0; float16's smallest step stands in for it.
        step = np.maximum(step, np.float32(2.0**-24))
        error = theirs - ours
        steps = np.abs(error / step)
        if not steps.max() <= self.tolerance.inner:
            limit = np.where(at_end, np.float32(self.tolerance.end), np.float32(self.tolerance.inner))
            worst = float((steps / limit).max())
            if not worst <= 1:
                self.wrong = f"a code is {worst:.2g} times as far off as its rounding may be"
        off = _squares(error, 1)
        if self.tolerance.along is None:
            inside = np.float32(self.tolerance.rms**2)
            allowed = np.square(step) * np.where(at_end, np.float32(CLIPPED**2), inside)
            worst = float((off / allowed.sum(axis=1)).max())
            self._off = self._off + _squares(error, 0)
            self._allowed = self._allowed + allowed.sum(axis=0)
            self._rows += len(error)
            if self._rows >= FEWEST:
                worst = max(worst, float((self._off / self._allowed).max()))
        else:
            size = _squares(step, 1)
            # Cauchy and Schwarz: an error of the step's size along the weights would give their product.
            along = np.square(_products(error, theirs, 1)) / (size * _squares(theirs, 1) + SMALLEST)
            worst = float((along / self.tolerance.along**2).max())
            worst = max(worst, float((off / (size * self.tolerance.rms**2)).max()))
        if not worst <= 1:
            times = math.sqrt(worst)
            self.wrong = self.wrong or f"a row or column is {times:.2g} times as far off as its codes may be"
        self._square += float(_squares(steps, 1).sum(dtype=np.float64))
        self._count += error.size


def _squares(values: np.ndarray, axis: int) -> np.ndarray:
    """Sums of squares along an axis of a matrix, without a copy."""
    return _products(values, values, axis)


def _products(one: np.ndarray, other: np.ndarray, axis: int) -> np.ndarray:
    sums: np.ndarray = np.einsum("rk,rk->r" if axis else "rk,rk->k", one, other)
    return sums


def _unseen(expected: Expected, seen: set[str], untraced: Mapping[str, None]) -> Iterator[tuple[str, Weight]]:
    """Weights of the source that no node reads, unless leaving them out changes nothing."""
    unknown = {entry.partition(":")[0] for entry in untraced}
    for name, weight in expected.weights.items():
        role, _, kind = name.rpartition(".")
        covered = any(role == other or f"{role}.{kind}" == other for other in unknown)
        packed = any(role in dict(expected.parts(other, kind)) for other in unknown)
        if name not in seen and not covered and not packed and not is_neutral(weight, kind):
            yield role if kind == "weight" else f"{role}.{kind}", weight


def _rest(model: ir.Model, traced: set[ir.Value]) -> Iterator[tuple[str, int]]:
    """Float constants and codes that were traced to nothing, and their bytes."""
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if value in traced or tensor is None or tensor.nbytes < UNTRACED_BYTES:
            continue
        if tensor.dtype in (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL):
            continue
        readers = {f"{role_of(use.node) or use.node.op_type}" for use in value.uses()}
        yield f"{name}: read by {', '.join(sorted(readers)) or 'nothing'}", tensor.nbytes
