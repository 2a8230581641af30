"""A prompt, then one token at a time through a cache that grows, is what one pass over all tokens gives.

Catches positions or masks that forget the past, and a cache that keeps keys in another form than it reads them.
"""

from __future__ import annotations

import numpy as np

from onnx_gpt.parity.cases import NO_CACHE, Compared, Found, Trial


def run(trial: Trial) -> Found:
    if not trial.candidate.cached:
        return NO_CACHE
    half = len(trial.tokens) // 2
    logits, past = trial.candidate.run(trial.tokens[None, :half])
    stepped = [logits[0]]
    for t in range(half, len(trial.tokens)):
        logits, past = trial.candidate.run(trial.tokens[None, t : t + 1], past=past)
        stepped.append(logits[0])
    return Compared(np.concatenate(stepped), trial.whole, f"{half} tokens at once, then one by one")
