"""Whether a quantized weight is what its grid can make of the float one.

Rounding to a grid costs what it costs; how much, an independent rounding of the same weight to a grid of the same bits
and blocks tells (absmax scales, nothing searched). Codes whose error in one input channel, one output channel or one
block is many times that are not a coarser choice but another weight: a column flipped, a scale of somebody else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from calibration.quantization.sites import Site, site_of
from exporter.errors import first_line
from graph_passes.proof.evaluate import CannotEvaluate, evaluate
from graph_passes.proof.subgraph import NodeSnapshot, Subgraph
from onnx_gpt.bisecting.locating import Piece
from onnx_gpt.parity.values import TIMES, rounded

CODED = frozenset(["MatMulNBits", "GatherBlockQuantized", "DequantizeLinear"])


def is_coded(piece: Piece) -> bool:
    """Whether the piece after holds codes and the one before the weight that they stand for."""
    return _site(piece) is not None and any(snapshot.op_type in CODED for snapshot in piece.after.nodes)


def judge(piece: Piece) -> str:
    """How the codes of a piece differ from what they should be; empty where they do not.

    The weight is got out of the piece itself: by what it gives for the unit vectors, where it multiplies, and for every
    row, where it looks rows up.
    """
    site = _site(piece)
    assert site is not None
    weight = site.weight.read()
    try:
        found = _weight(piece.after, site)
    except CannotEvaluate as failure:
        return f"it does not run: {first_line(failure)}"
    bits, block = _grid(piece.after)
    wanted = rounded(weight, bits, min(block, weight.shape[1])) - weight
    error = found - weight
    for what, ratio, at in (
        ("input channel", *_worst(error, wanted, 0)),
        ("output channel", *_worst(error, wanted, 1)),
    ):
        if not ratio <= TIMES:
            return (
                f"{what} {at} of its weight is {ratio:.3g} times as far from the float one as rounding to "
                f"{bits} bits in blocks of {block} takes it"
            )
    return ""


def exhibit(piece: Piece) -> tuple[dict[str, np.ndarray], float]:
    """Inputs on which both sides of a piece give the weight itself, and what rounding takes from an element, at most.

    Returns:
        Inputs by name, and `TIMES` times the largest error of plain rounding, of the largest weight.
    """
    site = _site(piece)
    assert site is not None
    weight = site.weight.read()
    bits, block = _grid(piece.after)
    off = np.abs(rounded(weight, bits, min(block, weight.shape[1])) - weight).max()
    rows, columns = weight.shape
    unit: np.ndarray = np.eye(columns, dtype=np.float32)[None]
    given = np.arange(rows, dtype=np.int64)[None] if site.kind == "lookup" else unit
    return {str(site.input.name): given}, float(TIMES * off / np.abs(weight).max())


def _worst(error: np.ndarray, wanted: np.ndarray, axis: int) -> tuple[float, int]:
    """Largest ratio of errors, in root mean square along an axis, and where."""
    usual = np.sqrt((wanted.astype(np.float64) ** 2).mean())
    theirs = np.sqrt((error.astype(np.float64) ** 2).mean(axis=axis))
    noise = np.sqrt((wanted.astype(np.float64) ** 2).mean(axis=axis))
    ratios = theirs / np.maximum(noise, 0.25 * usual + np.finfo(np.float32).tiny)
    at = int(np.argmax(ratios))
    return float(ratios[at]), at


def _site(piece: Piece) -> Site | None:
    for snapshot in piece.before.nodes:
        node = snapshot.outputs[0].producer()
        site = site_of(node) if node is not None else None
        if site is not None:
            return site
    return None


def _grid(after: Subgraph) -> tuple[int, int]:
    """Bits and block size of the codes in a piece."""
    for snapshot in after.nodes:
        settings = {a.name: a.value for a in snapshot.attributes}
        if snapshot.op_type in ("MatMulNBits", "GatherBlockQuantized"):
            return int(settings.get("bits", 4)), int(settings["block_size"])
    return 8, 1 << 30  # one scale for a whole output channel


def _weight(after: Subgraph, site: Site) -> np.ndarray:
    """``[N, K]`` of the piece after, whatever it is made of."""
    factor = _dequantized_factor(after)
    if factor is not None:  # its input is rounded too, which unit vectors would meet
        snapshots, value = factor
        alone = dataclasses.replace(after, inputs=(), nodes=snapshots, outputs=(value,))
        return np.ascontiguousarray(evaluate(alone, {})[0].T)
    N, K = site.weight.shape
    (source,) = (value for value in after.inputs if value.name == site.input.name)
    if site.kind == "lookup":
        return _last(evaluate(after, {source: np.arange(N, dtype=np.int64)[None]}), K)
    unit = np.eye(K, dtype=np.float32)[None]
    whole = _last(evaluate(after, {source: unit}), N)
    bias = _last(evaluate(after, {source: np.zeros_like(unit[:, :1])}), N)
    return np.ascontiguousarray((whole - bias).T)


def _last(outputs: Sequence[np.ndarray], width: int) -> np.ndarray:
    return outputs[0].reshape(-1, width)


def _dequantized_factor(after: Subgraph) -> tuple[tuple[NodeSnapshot, ...], ir.Value] | None:
    """The right factor of a product where that is made of codes by DequantizeLinear, and what makes it."""
    made = {value: snapshot for snapshot in after.nodes for value in snapshot.outputs}
    for snapshot in after.nodes:
        factor = snapshot.inputs[1] if snapshot.op_type == "MatMul" else None
        maker = made.get(factor) if factor is not None else None
        if factor is not None and maker is not None and maker.op_type == "DequantizeLinear":
            return (maker,), factor
    return None
