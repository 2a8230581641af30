"""Tokens far into a context, at the cost of a few: both models go on from the same long cache.

A cache of a real text is repeated until it is long enough. What it holds is no text, but keys and values of the right
size, which two models that are the same must make the same of; to compute it would cost a pass over the whole context.
"""

from __future__ import annotations

import numpy as np

from onnx_gpt.parity.candidate import Candidate
from onnx_gpt.parity.cases import Compared, Found, NotRun, Trial
from onnx_gpt.parity.metrics import divergence, log_softmax

NEW = 8


def far(trial: Trial, length: int) -> Found:
    """Logits of ``NEW`` tokens, the last of which is number ``length`` (from 1), by candidate and reference."""
    candidate = trial.candidate
    where = f"tokens {length - NEW} to {length - 1}"
    if not isinstance(candidate, Candidate) or not candidate.cached or not trial.reference.remembers:
        return _whole(trial, length, where)
    seed = candidate.run(trial.tokens[None])[1]
    reason = _foreign(candidate, trial.reference)
    if reason is None and not _understood(trial):
        reason = "the candidate keeps values in channels of its own: they were turned or scaled before export"
    if reason is not None:
        return NotRun(reason)
    before = length - NEW
    row = sum(array.nbytes for array in seed.values()) // len(trial.tokens)
    if row * before > trial.memory:
        return NotRun(
            f"a cache of {before} tokens takes {row * before >> 20} MB, more than {trial.memory >> 20}"
        )
    past = {name: _repeated(array, before) for name, array in seed.items()}
    new = trial.tokens[None, :NEW]
    ours, theirs = candidate.run(new, past=past)[0][0], trial.reference.run(new, past=past)[0][0]
    return Compared(ours, theirs, f"{where}, after a cache of repeated text", to_reference=True)


def _whole(trial: Trial, length: int, where: str) -> Found:
    """The same by passes over whole sequences, where one of the two takes no cache."""
    if length > LONGEST:
        return NotRun(f"without a cache on both sides {length} tokens would be run at once")
    tokens = np.resize(trial.tokens, length)[None]
    ours, theirs = (model.run(tokens, keep=NEW)[0][0] for model in (trial.candidate, trial.reference))
    return Compared(ours, theirs, where, to_reference=True)


LONGEST = 1024
"""Tokens of a whole sequence that are run at once where there is no cache to go on from."""


def _foreign(candidate: Candidate, reference: object) -> str | None:
    """Why the candidate's cache is nothing to the reference; None where it is its own."""
    slots = candidate.interface.slots
    if any(not slot.past.startswith("past_key_values.") or slot.dtype != np.float32 for slot in slots):
        return "the candidate's cache is not float32 under the contract's names"
    if isinstance(reference, Candidate) and {s.past: s.shape for s in reference.interface.slots} != {
        s.past: s.shape for s in slots
    }:
        return "the two graphs keep their caches in different forms"
    return None


UNDERSTOOD = 0.3
"""Mean KL up to which a reference goes on from a candidate's cache as from its own; rounding alone costs less."""


def _understood(trial: Trial) -> bool:
    """Whether the reference can go on from the candidate's cache of the very text: not where static 8-bit or AWQ have
    changed the channels of values, which is nothing to the candidate itself."""
    half = len(trial.tokens) // 2
    past = trial.candidate.run(trial.tokens[None, :half])[1]
    ours = trial.reference.run(trial.tokens[None, half:], past=past)[0][0]
    theirs = trial.reference.logits(trial.tokens[None])[0][half:]
    return float(divergence(log_softmax(ours), log_softmax(theirs)).mean()) <= UNDERSTOOD


def _repeated(array: np.ndarray, length: int) -> np.ndarray:
    """``[B, K, T, D]`` along T, as often as it takes."""
    repeated: np.ndarray = np.take(array, np.arange(length) % array.shape[2], axis=2)
    return repeated
