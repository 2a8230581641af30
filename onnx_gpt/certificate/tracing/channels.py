"""What a bundle's weights went through before they were rounded: rotations that are always the same, and scales of
channels, which a text has said and which the bundle itself still tells.

Scaling makes channel k of one map smaller by a factor and every reader's column k larger by it
(`calibration.transforms.scaling`). So each of these weights, held against the source's, gives that factor by itself: a
column or row by the least squares of its many numbers, a norm's gain or a bias exactly. Where they agree it is known
far better than a code's step; a weight that is not the source's fits no factor, and is left with that of the others.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from calibration.transforms.rotation import rotated
from calibration.transforms.scaling import Scales, givers, of_giver, roles_of, scaled
from calibration.transforms.smoothing import SMOOTHED
from exporter.checkpoint import Checkpoint
from exporter.decoder import Decoder
from exporter.weights import Weight
from onnx_gpt.certificate.tracing.expected import Expected, expected_of
from onnx_gpt.certificate.tracing.found import uses_of
from onnx_gpt.certificate.tracing.stored import Stored
from onnx_gpt.exporting import Transform

ROTATED = ("w8a8", "dynamic8")
"""Schemes of a rotated decoder."""

ERRORS = 5.0
"""Standard errors of what codes tell by which an exact factor may be off it, and be believed."""

SURELY = 0.01
"""Share by which it may be off in any case: as long as another factor is not known, it is in the errors of this one."""

NORMS = ("attention_norm", "ffn_norm")
ROUNDS = 4
"""Rows of up are scaled, and its columns by what gives its inputs: the one is told well once the other is known. In
turn, for where each is told as if the other were not there, what both see is taken twice."""

ALONG = 0.22
"""Steps, in root mean square, of a column's error that may lie along the column itself: rounding makes small weights
zero and clips large ones, which no number of rows evens out. SmolLM2 is at 0.19."""

SMALLEST = 1e-30
"""Stands for no bias where a geometric mean is taken."""

LARGEST = 1e4
"""Factors that no calibration gives are none."""


def transform_of(opened: Checkpoint, model: ir.Model, *, quantize: str, method: str) -> Transform | None:
    """What a checkpoint's decoder went through before the graph of ``model`` was built; None for nothing.

    Args:
        model: a finished graph; its nodes carry roles.
        quantize, method: what the report's recipe says.
    """
    turn: Transform | None = rotated if quantize in ROTATED else None
    if quantize != "w8a8" and method != "awq":
        return turn
    expected = expected_of(opened, turn)
    assert expected.decoder is not None
    scales: dict[str, np.ndarray] = {}
    for ends in (SMOOTHED, NORMS) * ROUNDS if method == "awq" else (SMOOTHED,):
        _, weights = scaled(expected.decoder, expected.weights, scales)
        more = _scales(model, dataclasses.replace(expected, weights=weights), ends)
        scales |= {giver: scale * scales.get(giver, np.float32(1)) for giver, scale in more.items()}
    return functools.partial(_turned_and_scaled, turn=turn, scales=scales)


def _turned_and_scaled(
    decoder: Decoder, weights: Mapping[str, Weight], *, turn: Transform | None, scales: Scales
) -> tuple[Decoder, dict[str, Weight]]:
    turned = (decoder, weights) if turn is None else turn(decoder, weights)
    return scaled(*turned, scales)


def _scales(model: ir.Model, expected: Expected, ends: tuple[str, ...]) -> Scales:
    """By what gives the channels, of roles that end so; ones where nothing tells."""
    decoder = expected.decoder
    assert decoder is not None
    stored = dict(_by_part(model, expected))
    found: dict[str, np.ndarray] = {}
    for giver in (giver for giver in givers(decoder) if giver.endswith(ends)):
        sources, readers = roles_of(decoder, giver)
        rounded, exact = [], []
        for role in readers:
            if role in stored:
                told = _of_columns(*stored[role])
                rounded.append(Estimate(*(of_giver(decoder, giver, array) for array in told)))
        for role in sources:
            if role not in stored:
                continue
            whole, at, weight = stored[role]
            if len(weight.shape) == 1:
                exact.append(_of_vector(weight.read(), whole.rows(at, at + weight.shape[0])[0]))
            else:
                rounded.append(_of_rows(whole, at, weight))
        if rounded:
            found[giver] = _combined(rounded, exact)
    return found


def _by_part(model: ir.Model, expected: Expected) -> Iterator[tuple[str, tuple[Stored, int, Weight]]]:
    """By name, ``layers.0.attention.q.weight``: what holds it, its first row there, and what it was made of."""
    for use in uses_of(model, expected):
        at = 0
        for role, weight in expected.parts(use.role, use.kind) if isinstance(use.stored, Stored) else ():
            assert isinstance(use.stored, Stored)
            if use.stored.shape[1:] == weight.shape[1:]:
                yield f"{role}.{use.kind}", (use.stored, at, weight)
            at += weight.shape[0]


class Estimate(NamedTuple):
    """Factors of channels, and how far they may be off; a factor that cannot be one is 1 of endless variance.

    Attributes:
        variance: of the factors' logarithms, as far as errors of codes are chance.
        bias: what they may be off by where these are not. A column of zeros tells nothing of its factor, which does
            nothing there.
    """

    factor: np.ndarray
    variance: np.ndarray
    bias: np.ndarray


def _of_columns(whole: Stored, at: int, weight: Weight) -> Estimate:
    sums = np.zeros((4, weight.shape[1]))
    for start, stop in weight.pieces():
        found, step, _ = whole.rows(at + start, at + stop)
        wanted = weight.rows(start, stop)
        sums += [np.einsum("nk,nk->k", a, b, dtype=np.float64) for a, b in _pairs(found, wanted, step)]
    return _fitted(sums, weight.shape[0])


def _of_rows(whole: Stored, at: int, weight: Weight) -> Estimate:
    sums = []
    for start, stop in weight.pieces():
        found, step, _ = whole.rows(at + start, at + stop)
        pairs = _pairs(found, weight.rows(start, stop), step)
        sums.append([np.einsum("nk,nk->n", a, b, dtype=np.float64) for a, b in pairs])
    smaller, variance, bias = _fitted(np.concatenate(sums, axis=1), weight.shape[1])
    return Estimate(1 / smaller, variance, bias)


def _pairs(found: np.ndarray, wanted: np.ndarray, step: np.ndarray | None) -> list[tuple[np.ndarray, ...]]:
    step = np.zeros_like(found) if step is None else step
    return [(found, found), (wanted, wanted), (found, wanted), (step, step)]


def _fitted(sums: np.ndarray, count: int) -> Estimate:
    """Least squares of ``found = factor · wanted`` from the sums of `_pairs`' products over ``count`` numbers each."""
    ours, theirs, both, steps = sums
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = both / theirs
        left = np.maximum(ours - factor * both, np.finfo(np.float32).eps ** 2 * ours)
        variance = left / (theirs * factor**2 * max(count - 1, 1))
        bias = ALONG * np.sqrt(steps / (theirs * factor**2))
    likely = (factor > 1 / LARGEST) & (factor < LARGEST) & np.isfinite(variance)
    instead = ((factor, 1.0), (variance, np.inf), (np.maximum(bias, SMALLEST), SMALLEST))
    return Estimate(*(np.where(likely, array, other) for array, other in instead))


def _of_vector(wanted: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Factors that make one vector the other; 0 where there is none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = wanted.astype(np.float64) / found
    return np.where(np.isfinite(factor), factor, 0.0)


def _combined(rounded: list[Estimate], exact: list[np.ndarray]) -> np.ndarray:
    """The mean of all estimates by what each is worth; where an exact one is near that, or nothing else tells, that."""
    worth = np.stack([1 / np.maximum(one.variance, 1e-30) for one in rounded])
    told = worth.sum(axis=0)
    total = np.maximum(told, 1e-30)
    found = mean = (worth * np.log([one.factor for one in rounded])).sum(axis=0) / total
    bias = (worth * [one.bias for one in rounded]).sum(axis=0) / total
    chance = np.clip(ERRORS / np.sqrt(total), SURELY, 1.0)
    limit = np.where(told > 0, np.maximum(chance, bias), np.log(LARGEST))
    for other in reversed(exact):
        with np.errstate(divide="ignore", invalid="ignore"):
            own = np.log(other)
        near = np.abs(own - mean) <= limit
        found = np.where(near, own, found)
    combined: np.ndarray = np.exp(found).astype(np.float32)
    return combined
