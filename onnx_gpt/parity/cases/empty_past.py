"""Decoding from nothing: the first token goes through an empty cache alone, the others follow it one by one.

Catches graphs that take an empty cache for a row of zeros, and kernels that need more than one token.
"""

from __future__ import annotations

import numpy as np

from onnx_gpt.parity.cases import NO_CACHE, Compared, Found, Trial

COUNT = 6


def run(trial: Trial) -> Found:
    if not trial.candidate.cached:
        return NO_CACHE
    past, stepped = None, []
    count = min(COUNT, len(trial.tokens))
    for t in range(count):
        logits, past = trial.candidate.run(trial.tokens[None, t : t + 1], past=past)
        stepped.append(logits[0])
    return Compared(np.concatenate(stepped), trial.whole[:count], f"{count} tokens one by one from nothing")
