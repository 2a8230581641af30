"""Whether codes are a rounding of the weights they are said to be, channel by channel.

Rounding to a grid costs what it costs. How much, plain rounding of the same weight to the same grid tells (absmax
scales, nothing searched, nothing chosen on text). Codes whose error in some channel is several times that are no
coarser choice but another weight: a column flipped, a row's scale halved, scales of another layer. No forward pass sees
one column in a hundred thousand beside what four bits cost anyway.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from exporter.weights import Weight
from onnx_gpt.parity.coded import Coded

TIMES = 4.0
"""Times the error of plain rounding that a channel's codes may be away, in root mean square."""
ROWS_CHOSEN = 3.0
"""What an output channel's error along its weight counts where codes were chosen on text. GPTQ moves error to inputs
that text hardly excites, by 11 times plain rounding in an input channel of SmolLM2 and by 4 in an output channel; but
only 2.8 and 0.7 times of it lie along the weight, where half a scale puts it (at least 1.5 in an output channel of
blocks of 128; docs/experiments.md)."""
INPUTS_CHOSEN = 0.5
"""The same of an input channel at 8 bits, where what GPTQ moves is more beside the steps: 4.7 times plain rounding
along the weight in SmolLM2, and half a scale is 12 at least, a flipped column 46."""


@dataclasses.dataclass(frozen=True)
class Worst:
    """The channel that is furthest from its weight.

    Attributes:
        times: its error, as a multiple of plain rounding's.
        where: role and channel.
    """

    times: float
    where: str


def furthest(coded: Iterable[Coded], weights: Mapping[str, Weight], *, chosen: bool = False) -> Worst:
    """The worst channel of all weights.

    Args:
        weights: by role, ``[N, K]``; several nodes of one role hold consecutive rows of it.
        chosen: codes were chosen on text, and not rounded.
    """
    offsets: dict[tuple[str, str], int] = {}
    worst = Worst(0.0, "no weight is quantized")
    for one in coded:
        start = offsets.get((one.kind, one.role), 0)
        offsets[one.kind, one.role] = start + one.shape[0]
        worst = max(
            worst,
            _furthest(one, weights[one.role], start, chosen),
            key=lambda found: found.times,
        )
    return worst


def _furthest(one: Coded, weight: Weight, offset: int, chosen: bool) -> Worst:
    columns = weight.shape[1]
    by_input, by_row = np.zeros((5, columns)), list[np.ndarray]()
    for found, wanted in _pieces(one, weight, offset):
        scale = steps(wanted, one.bits, one.block)
        between = np.repeat(scale[..., 0] / np.sqrt(12), one.block, axis=1)[:, :columns]
        error, usual = found - wanted, _on_grid(wanted, scale, one.block) - wanted
        pairs = ((error, error), (usual, usual), (between, between), (error, wanted), (wanted, wanted))
        by_input += [np.einsum("nk,nk->k", a, b, dtype=np.float64) for a, b in pairs]
        by_row.append(np.stack([np.einsum("nk,nk->n", a, b, dtype=np.float64) for a, b in pairs]))
    rows = (ROWS_CHOSEN if chosen else 1.0) * _ratio(*np.concatenate(by_row, axis=1), chosen=chosen)
    inputs = (INPUTS_CHOSEN if chosen and one.bits == 8 else 1.0) * _ratio(*by_input, chosen=chosen)
    found_rows = Worst(float(rows.max()), f"output channel {int(rows.argmax()) + offset} of {one.role}")
    found_inputs = Worst(float(inputs.max()), f"input channel {int(inputs.argmax())} of {one.role}")
    return max(found_rows, found_inputs, key=lambda found: found.times)


def _pieces(one: Coded, weight: Weight, offset: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for start, rows in one.rows():
        wanted = weight.rows(offset + start, offset + start + len(rows))
        yield rows[:, : wanted.shape[1]], wanted


def steps(weight: np.ndarray, bits: int, block: int) -> np.ndarray:
    """Scales ``[N, blocks, 1]`` of the symmetric grid whose largest code is the largest size in a block of a row."""
    split: np.ndarray = _split(weight, block)
    scale: np.ndarray = np.abs(split).max(axis=-1, keepdims=True) / np.float32((1 << (bits - 1)) - 1)
    return scale


def rounded(weight: np.ndarray, bits: int, block: int) -> np.ndarray:
    """Rows ``[N, K]`` rounded to the grid of `steps`."""
    return _on_grid(weight, steps(weight, bits, block), block)


def _on_grid(weight: np.ndarray, scale: np.ndarray, block: int) -> np.ndarray:
    codes = np.rint(_split(weight, block) / np.where(scale > 0, scale, 1))
    result: np.ndarray = (codes * scale).reshape(len(weight), -1)[:, : weight.shape[1]]
    return result


def _split(weight: np.ndarray, block: int) -> np.ndarray:
    """Rows in blocks ``[N, blocks, block]``, the last filled with zeros."""
    rows, columns = weight.shape
    padded = np.zeros((rows, -(-columns // block) * block), np.float32)
    padded[:, :columns] = weight
    return padded.reshape(rows, -1, block)


def _ratio(
    ours: np.ndarray,
    usual: np.ndarray,
    between: np.ndarray,
    along: np.ndarray,
    size: np.ndarray,
    *,
    chosen: bool,
) -> np.ndarray:
    """Root of the ratio of summed squares; where rounding costs almost nothing, of a quarter of its usual cost.

    A weight that lies on the grid already, as that of a quantized source may, costs nothing at all: then of half of
    what weights between the steps would cost.

    Args:
        between: a twelfth of the squared steps, summed.
        along: sums of errors times weights.
        size: the weights' squares, summed.
        chosen: only what lies along the weights counts.
    """
    tiny = np.finfo(np.float64).tiny
    if chosen:
        ours = along**2 / (size + tiny)
    least = np.maximum(usual.mean() / 16, between / 4) + tiny
    ratio: np.ndarray = np.sqrt(ours / np.maximum(usual, least))
    return ratio
