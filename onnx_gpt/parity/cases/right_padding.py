"""Rows of different lengths, padded on the right, against each alone; then a step of both where there is a cache.

Catches padding that is seen, and positions that count it.
"""

from __future__ import annotations

import numpy as np

from onnx_gpt.parity.cases import NO_MASK, ONE_ROW, Compared, Found, Trial
from onnx_gpt.parity.cases._padding import padded


def run(trial: Trial) -> Found:
    candidate, tokens, whole = trial.candidate, trial.tokens, trial.whole
    if not candidate.pads:
        return NO_MASK
    if not candidate.batches:
        return ONE_ROW
    rows, mask, short = padded(trial, left=False)
    logits, past = candidate.run(rows, mask)
    ours, theirs = [logits[0], logits[1, :short]], [whole[:-1], whole[:short]]
    if candidate.cached:
        step = np.array([[tokens[-1]], [tokens[short]]])
        last, _ = candidate.run(step, np.concatenate([mask, np.ones((2, 1), np.int64)], axis=1), past)
        ours, theirs = [*ours, last[0], last[1]], [*theirs, whole[-1:], whole[short : short + 1]]
    return Compared(np.concatenate(ours), np.concatenate(theirs), f"{len(tokens) - 1} and {short} tokens")
