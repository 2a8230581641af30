"""Rows of different lengths, padded on the right, against each alone; then a step of both where there is a cache.

Catches padding that is seen, and positions that count it.

The step leaves a gap between a short row's tokens. It is asked of graphs that refuse padding on the left, which are
fed so. Others are fed with padding on the left, where a step follows what it continues (`left_padding` has that one),
and may count places: ``attention{padding=any}`` does.
"""

from __future__ import annotations

from exporter.errors import OnnxGptError
from onnx_gpt.parity.cases import NO_MASK, ONE_ROW, Found, Trial
from onnx_gpt.parity.cases._padding import compared, padded, run_padded_left


def run(trial: Trial) -> Found:
    candidate = trial.candidate
    if not candidate.pads:
        return NO_MASK
    if not candidate.batches:
        return ONE_ROW
    rows, mask, short = padded(trial, left=False)
    logits, past = candidate.run(rows, mask)
    return compared(trial, [logits[0], logits[1, :short]], mask, past, step=not _pads_left(trial))


def _pads_left(trial: Trial) -> bool:
    try:
        return run_padded_left(trial, trial.candidate) is not None
    except OnnxGptError:
        return False
