"""Outlier channels moved from activations into weights, before both are rounded to 8 bits: SmoothQuant, offline.

Xiao et al. 2022, "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models" (arXiv
2211.10438): ``s_k = max|X_k|^α / max|W_k|^(1−α)`` makes inputs ``X/s`` flat and weights ``W·diag(s)`` steeper. Scaling
is free where what gives the inputs can be made smaller once (`calibration.transforms.scaling`): up gives those of down,
and values those of o. Norms need none after a rotation. α is searched for each product, for the least error of its
outputs in the runtime's own arithmetic (`calibration.static.qdq`), on tokens that no scale was taken from: most neurons
of a gated feed-forward fire rarely, and what made one text's inputs flat clips another's.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from calibration.progress import Advance
from calibration.static.codes import nearest
from calibration.static.qdq import rounded_to, rows_rounded
from calibration.statistics.histogram import Histogram
from calibration.threads import single_threaded_blas
from calibration.transforms.scaling import Scales, of_giver, of_readers
from calibration.walking import sample, walk
from exporter.decoder import Decoder

EXPONENTS = (0.5, 0.7, 0.9)
"""Values of α that are tried, beside leaving the channels as they are."""
FLOORS = (0.5, 0.9, 0.98)
"""Shares of the channels that are taken for as large as the largest of them: a neuron that hardly fired on the text
fires on another one."""
ROWS = 4096
"""Tokens at most: scales and ranges come from the first half of them, errors from the second."""
SMOOTHED = ("attention.v", "ffn.up")
"""Ends of the roles whose channels are scaled."""


@dataclasses.dataclass(frozen=True)
class Smoothing:
    """What was found for a decoder.

    Attributes:
        scales: for `calibration.transforms.scaling.scaled`.
        errors: error of a product's outputs over their size, squares, in the mean of tokens that gave no scale,
            by the product's role.
    """

    scales: Scales
    errors: Mapping[str, float]


def smooth(
    decoder: Decoder,
    model: ir.Model,
    tokens: np.ndarray,
    givers: Collection[str],
    folder: Path,
    advance: Advance,
) -> Smoothing:
    """Find scales of channels on a text.

    Args:
        decoder: of the graph; rotated or not.
        model: its float graph as passes leave it; it is not changed.
        tokens: int64 ``[N, S]``, every one real.
        givers: roles whose channels can be scaled (`scaling.givers`).
        folder: scratch.
    """
    scales: dict[str, np.ndarray] = {}
    errors: dict[str, float] = {}
    with single_threaded_blas():
        for giver, sites, stream in walk(model, tokens, folder, advance):
            if not giver.endswith(SMOOTHED):
                continue
            (site,) = sites  # o and down are alone with their inputs
            x = sample(stream, str(site.input.name), ROWS)
            seen, unseen = x[: len(x) // 2], x[len(x) // 2 :: 2]
            w = site.weight.read()
            exact = unseen @ w.T
            largest, weight = np.abs(seen).max(axis=0), np.abs(w).max(axis=0)
            by_token = giver.endswith("ffn.up")
            ones = np.ones_like(largest)
            tried = [(ones, _error(seen, unseen, w, exact, ones, by_token))]
            for exponent, floor in itertools.product(EXPONENTS, FLOORS) if giver in givers else ():
                bounded = np.maximum(largest, np.quantile(largest, floor))
                own = of_giver(decoder, giver, _scale(bounded, weight, exponent))
                tried.append((own, _error(seen, unseen, w, exact, of_readers(decoder, giver, own), by_token)))
            best, errors[site.role] = min(tried, key=lambda found: found[1])
            if best is not ones:
                scales[giver] = best
    return Smoothing(scales, errors)


def _scale(largest: np.ndarray, weight: np.ndarray, exponent: float) -> np.ndarray:
    """``max|X|^α / max|W|^(1−α)`` around 1; channels that carry nothing keep 1."""
    floor = np.finfo(np.float32).tiny
    scale = np.maximum(largest, floor) ** exponent / np.maximum(weight, floor) ** (1 - exponent)
    live = (largest > 0) & (weight > 0)
    middle = np.exp(np.log(scale[live]).mean()) if live.any() else 1.0
    bounded: np.ndarray = np.where(live, np.clip(scale / middle, 1e-4, 1e4), 1).astype(np.float32)
    return bounded


def _error(
    seen: np.ndarray, unseen: np.ndarray, w: np.ndarray, exact: np.ndarray, scale: np.ndarray, by_token: bool
) -> float:
    """Error of outputs over their size, in the mean of tokens."""
    if by_token:
        rounded = rows_rounded(unseen / scale)
    else:
        ends = Histogram.empty().add(seen[::2] / scale).finish().least_error()
        rounded = rounded_to(unseen / scale, ends)
    off = rounded @ nearest(w * scale).T - exact
    size = np.maximum(np.square(exact).sum(axis=1), np.finfo(np.float32).tiny)
    return float((np.square(off).sum(axis=1) / size).mean())
