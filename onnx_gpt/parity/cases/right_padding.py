"""Rows of different lengths, padded on the right, against each alone; then a step of both where there is a cache.

Catches padding that is seen, and positions that count it.
"""

from __future__ import annotations

from onnx_gpt.parity.cases import NO_MASK, ONE_ROW, Found, Trial
from onnx_gpt.parity.cases._padding import compared, padded


def run(trial: Trial) -> Found:
    candidate = trial.candidate
    if not candidate.pads:
        return NO_MASK
    if not candidate.batches:
        return ONE_ROW
    rows, mask, short = padded(trial, left=False)
    logits, past = candidate.run(rows, mask)
    return compared(trial, [logits[0], logits[1, :short]], mask, past)
