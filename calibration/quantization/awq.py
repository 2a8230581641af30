"""Channels that carry large inputs get weights that are rounded more finely: activation-aware weight quantization.

Lin et al. 2023, "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration" (arXiv 2306.00978).
With s = rms(x)^α for each input channel, rounding ``W·diag(s)`` and dividing the inputs by s leaves the function as it
is, and divides the error of channel k by s_k, as long as no scale of a block grows by as much. Dividing is free: what
gives the inputs is made smaller once (`calibration.transforms.scaling`). α is searched for each group of products that
share an input, for the least error of their outputs on text,

    Σ tr((W − Ŵ)·H·(W − Ŵ)ᵀ),   Ŵ = RTN(W·diag(s))·diag(1/s),   H = X·Xᵀ / T

Scales of blocks are those of round to nearest. GPTQ does better with the same text (docs/experiments.md); this one
keeps no codes, so that weights stay unread until they are written.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from calibration.progress import Advance
from calibration.quantization import rtn
from calibration.quantization.sites import Site
from calibration.quantization.tensors import CHUNK
from calibration.quantization.weight_only import pieces
from calibration.scheme import Grid, WeightOnly
from calibration.statistics.hessian import Hessian
from calibration.transforms.scaling import Scales
from calibration.walking import walk
from exporter.weights import Weight

EXPONENTS = tuple(i / 10 for i in range(10))
"""Values of α that are tried; 0 is round to nearest as it is."""


def scales(
    model: ir.Model,
    scheme: WeightOnly,
    tokens: np.ndarray,
    givers: Collection[str],
    width: Callable[[str, np.ndarray], np.ndarray],
    folder: Path,
    advance: Advance,
) -> Scales:
    """Scales of the channels of a float graph that make round to nearest least wrong on a text.

    Args:
        model: as passes leave it; it is not changed.
        tokens: int64 ``[N, S]``, every one real.
        givers: roles whose channels can be scaled.
        width: for a giver, scales of its readers' inputs made equal where they come from one channel of the giver.
        folder: scratch.
    """
    found: dict[str, np.ndarray] = {}
    for giver, sites, stream in walk(model, tokens, folder, advance):
        if giver not in givers:
            continue
        name = str(sites[0].input.name)
        moment: Hessian | None = None
        for batch in range(len(stream.batches)):
            value = stream.feeds(batch, [name])[name]
            moment = (moment or Hessian.empty(value.shape[-1])).add(value)
        assert moment is not None
        best = search(sites, scheme, moment.finish(), lambda scale, giver=giver: width(giver, scale))  # type: ignore[misc]
        if best is not None:
            found[giver] = best
    return found


def search(
    sites: Sequence[Site],
    scheme: WeightOnly,
    hessian: np.ndarray,
    shared: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray | None:
    """The best scales ``[K]`` of the inputs that some products share; None where none are better than ones."""
    size = np.sqrt(np.maximum(np.diag(hessian), 1e-12 * np.diag(hessian).max() + 1e-30))
    parts = [(weight, grid) for site in sites for weight, grid in pieces(site, scheme) if grid is not None]
    weighting = np.ascontiguousarray(hessian, np.float32)
    best, least = None, np.inf
    for exponent in EXPONENTS:
        scale = shared(size**exponent)
        scale = (scale / np.sqrt(scale.max() * scale.min())).astype(np.float32)
        error = sum(_error(weight, grid, scale, weighting) for weight, grid in parts)
        if error < least:
            best, least = (scale if exponent else None), error
    return best


def _error(weight: Weight, grid: Grid, scale: np.ndarray, hessian: np.ndarray) -> float:
    """``tr((W − Ŵ)·H·(W − Ŵ)ᵀ)``"""
    total = 0.0
    for start, stop in weight.pieces(CHUNK):
        rows = weight.rows(start, stop)
        off = rtn.nearest(rows * scale, grid) / scale - rows
        total += float(np.einsum("rk,rk->", off @ hessian, off, dtype=np.float64))
    return total
