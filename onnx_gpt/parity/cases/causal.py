"""No token sees what comes after it: other tokens from the middle on, and at the very end, leave what is before alone.

Catches a missing or shifted causal mask, and activations that are scaled by what the whole sequence holds.
"""

from __future__ import annotations

import numpy as np

from onnx_gpt.parity.cases import Compared, Found, Trial


def run(trial: Trial) -> Found:
    tokens, whole = trial.tokens, trial.whole
    ours, theirs = [], []
    for start in (len(tokens) // 2, len(tokens) - 1):
        changed = tokens.copy()
        changed[start:] = (changed[start:] + 1 + np.arange(len(tokens) - start)) % trial.vocab_size
        ours.append(trial.candidate.logits(changed[None])[0, :start])
        theirs.append(whole[:start])
    return Compared(np.concatenate(ours), np.concatenate(theirs), "later tokens changed")
