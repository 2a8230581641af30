"""A prompt in pieces: several tokens after a past, as servers feed long prompts.

Catches masks that are right for one new token or for no past, and for nothing between.
"""

from __future__ import annotations

import numpy as np

from onnx_gpt.parity.cases import NO_CACHE, Compared, Found, Trial

PIECES = (3, 5, 1, 7)


def run(trial: Trial) -> Found:
    if not trial.candidate.cached:
        return NO_CACHE
    past, pieces, start = None, [], 0
    for length in (*PIECES, len(trial.tokens)):
        piece = trial.tokens[None, start : start + length]
        if piece.size:
            logits, past = trial.candidate.run(piece, past=past)
            pieces.append(logits[0])
        start += length
    return Compared(
        np.concatenate(pieces), trial.whole, f"pieces of {', '.join(map(str, PIECES))} and the rest"
    )
