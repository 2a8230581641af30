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

import numpy as np
import onnx_ir as ir

from calibration.transforms.rotation import rotated
from calibration.transforms.scaling import Scales, givers, of_giver, roles_of, scaled
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

ROUNDS = 4
"""Rows of up are scaled, and its columns by what gives its inputs: the one is told well once the other is known."""

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
    for _ in range(ROUNDS if method == "awq" else 1):
        _, weights = scaled(expected.decoder, expected.weights, scales)
        more = _scales(model, dataclasses.replace(expected, weights=weights))
        scales = {giver: scale * scales.get(giver, np.float32(1)) for giver, scale in more.items()}
    return functools.partial(_turned_and_scaled, turn=turn, scales=scales)


def _turned_and_scaled(
    decoder: Decoder, weights: Mapping[str, Weight], *, turn: Transform | None, scales: Scales
) -> tuple[Decoder, dict[str, Weight]]:
    turned = (decoder, weights) if turn is None else turn(decoder, weights)
    return scaled(*turned, scales)


def _scales(model: ir.Model, expected: Expected) -> Scales:
    """By what gives the channels; ones where nothing tells."""
    decoder = expected.decoder
    assert decoder is not None
    stored = dict(_by_part(model, expected))
    found: dict[str, np.ndarray] = {}
    for giver in givers(decoder):
        sources, readers = roles_of(decoder, giver)
        rounded, exact = [], []
        for role in readers:
            if role in stored:
                factor, spread = _of_columns(*stored[role])
                rounded.append((of_giver(decoder, giver, factor), of_giver(decoder, giver, spread)))
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


Estimate = tuple[np.ndarray, np.ndarray]
"""Factors of channels, and the variance of their logarithms; a factor that cannot be one is 1 of endless variance."""


def _of_columns(whole: Stored, at: int, weight: Weight) -> Estimate:
    ours, theirs, both = (np.zeros(weight.shape[1]) for _ in range(3))
    for start, stop in weight.pieces():
        found, wanted = whole.rows(at + start, at + stop)[0], weight.rows(start, stop)
        ours += np.einsum("nk,nk->k", found, found, dtype=np.float64)
        theirs += np.einsum("nk,nk->k", wanted, wanted, dtype=np.float64)
        both += np.einsum("nk,nk->k", found, wanted, dtype=np.float64)
    return _fitted(ours, theirs, both, weight.shape[0])


def _of_rows(whole: Stored, at: int, weight: Weight) -> Estimate:
    sums = []
    for start, stop in weight.pieces():
        found, wanted = whole.rows(at + start, at + stop)[0], weight.rows(start, stop)
        pairs = ((found, found), (wanted, wanted), (found, wanted))
        sums.append([np.einsum("nk,nk->n", a, b, dtype=np.float64) for a, b in pairs])
    ours, theirs, both = np.concatenate(sums, axis=1)
    smaller, variance = _fitted(ours, theirs, both, weight.shape[1])
    return 1 / smaller, variance


def _fitted(ours: np.ndarray, theirs: np.ndarray, both: np.ndarray, count: int) -> Estimate:
    """Least squares of ``found = factor · wanted`` from sums of products over ``count`` numbers each."""
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = both / theirs
        left = np.maximum(ours - factor * both, np.finfo(np.float32).eps ** 2 * ours)
        variance = left / (theirs * factor**2 * max(count - 1, 1))
    likely = (factor > 1 / LARGEST) & (factor < LARGEST) & np.isfinite(variance)
    return np.where(likely, factor, 1.0), np.where(likely, variance, np.inf)


def _of_vector(wanted: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Factors that make one vector the other; 0 where there is none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = wanted.astype(np.float64) / found
    return np.where(np.isfinite(factor), factor, 0.0)


def _combined(rounded: list[Estimate], exact: list[np.ndarray]) -> np.ndarray:
    """The mean of all estimates by what each is worth; where an exact one is near that, the exact one."""
    worth = np.stack([1 / np.maximum(variance, 1e-30) for _, variance in rounded])
    logs = np.stack([np.log(factor) for factor, _ in rounded])
    total = np.maximum(worth.sum(axis=0), 1e-30)
    mean = (worth * logs).sum(axis=0) / total
    found = mean
    for other in reversed(exact):
        with np.errstate(divide="ignore", invalid="ignore"):
            own = np.log(other)
        near = np.abs(own - mean) <= np.clip(ERRORS / np.sqrt(total), SURELY, 1.0)
        found = np.where(near, own, found)
    combined: np.ndarray = np.exp(found).astype(np.float32)
    return combined
