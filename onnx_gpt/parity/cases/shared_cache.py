"""One buffer bound as past and as present, with room for what comes: attention writes into what it reads.

Catches graphs that take the buffer's length for the number of tokens, and presents that hold the past twice.
"""

from __future__ import annotations

import numpy as np

from onnx_gpt.generation.decoder_session import SharedCache, Signature, writes_in_place
from onnx_gpt.parity.candidate import Candidate
from onnx_gpt.parity.cases import NO_CACHE, Compared, Found, NotRun, Trial


def run(trial: Trial) -> Found:
    candidate = trial.candidate
    if not isinstance(candidate, Candidate) or not candidate.cached:
        return NO_CACHE
    if not all(slot.past.startswith("past_key_values.") for slot in candidate.interface.slots):
        return NotRun("the cache does not have the contract's names")
    signature = Signature(candidate.session, candidate.interface.slots[0].shape[3])
    if signature.vocab_size is None or not writes_in_place(candidate.session, signature):
        return NotRun("attention gives a new cache at every step: a buffer cannot be past and present")
    cache = SharedCache(candidate.session, signature, signature.vocab_size)
    dtype, half = signature.dtype("input_ids"), len(trial.tokens) // 2
    cache.reserve(len(trial.tokens) + 8, 0)
    new = trial.tokens[None].astype(dtype)
    stepped = [cache.run([], new[:, :half], every=True)[0].astype(np.float32)]
    for t in range(half, len(trial.tokens)):
        logits = cache.run(trial.tokens[:t].tolist(), new[:, t : t + 1], every=False)
        stepped.append(logits[0, -1:].astype(np.float32))  # a copy: the next step writes where it is
    return Compared(np.concatenate(stepped), trial.whole, f"{half} tokens, then one by one in one buffer")
