"""Tokens far into a context, at the cost of a few: each model goes on from its own cache of one text, made long.

The cache of a short text is repeated until it is long enough. What that holds is no text, but two models that are the
same must make the same of it, whatever form each keeps it in: with other names, in 8 bits, with values turned or scaled
before export. To compute a real one would cost a pass over the whole context.
"""

from __future__ import annotations

import numpy as np

from onnx_gpt.parity.candidate import Candidate
from onnx_gpt.parity.cases import Compared, Found, NotRun, Trial

NEW = 8
LONGEST = 1024
"""Tokens of a whole sequence that are run at once where there is no cache to go on from."""


def far(trial: Trial, length: int, *, or_nearer: bool = False) -> Found:
    """Logits of ``NEW`` tokens, the last of which is number ``length`` (from 1), by candidate and reference.

    Args:
        or_nearer: whether the longest cache that memory allows will do where one for ``length`` is too large.
    """
    models = (trial.candidate, trial.reference)
    if not isinstance(trial.candidate, Candidate) or not all(model.remembers for model in models):
        return _whole(trial, length, f"tokens {length - NEW} to {length - 1}")
    seeds = [model.run(trial.tokens[None])[1] for model in models]
    a_token = max(sum(array.nbytes for array in seed.values()) for seed in seeds) / len(trial.tokens)
    before, limit = length - NEW, int(trial.memory / a_token)
    if before > limit and not (or_nearer and limit > len(trial.tokens)):
        size = int(before * a_token)
        return NotRun(f"a cache of {before} tokens takes {size >> 20} MB, more than {trial.memory >> 20}")
    before = min(before, limit)
    where = f"tokens {before} to {before + NEW - 1}"
    new = trial.tokens[None, :NEW]
    ours, theirs = (
        model.run(new, past=_repeated(seed, before, model.cache_axis))[0][0]
        for model, seed in zip(models, seeds, strict=True)
    )
    return Compared(ours, theirs, f"{where}, after a cache of repeated text", to_reference=True)


def _whole(trial: Trial, length: int, where: str) -> Found:
    """The same by passes over whole sequences, where one of the two takes no cache."""
    if length > LONGEST:
        return NotRun(f"without a cache on both sides {length} tokens would be run at once")
    tokens = np.resize(trial.tokens, length)[None]
    ours, theirs = (model.run(tokens, keep=NEW)[0][0] for model in (trial.candidate, trial.reference))
    return Compared(ours, theirs, where, to_reference=True)


def _repeated(cache: dict[str, np.ndarray], length: int, axis: int) -> dict[str, np.ndarray]:
    """A cache along its tokens, as often as it takes."""
    return {
        name: np.take(array, np.arange(length) % array.shape[axis], axis=axis)
        for name, array in cache.items()
    }
