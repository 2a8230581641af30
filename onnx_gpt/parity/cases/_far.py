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


def far(trial: Trial, length: int) -> Found:
    """Logits of ``NEW`` tokens, the last of which is number ``length`` (from 1), by candidate and reference."""
    models = (trial.candidate, trial.reference)
    where = f"tokens {length - NEW} to {length - 1}"
    if not isinstance(trial.candidate, Candidate) or not all(model.remembers for model in models):
        return _whole(trial, length, where)
    before, seeds = length - NEW, []
    for model in models:
        seeds.append(model.run(trial.tokens[None])[1])
        size = sum(array.nbytes for array in seeds[-1].values()) * before // len(trial.tokens)
        if size > trial.memory:
            return NotRun(f"a cache of {before} tokens takes {size >> 20} MB, more than {trial.memory >> 20}")
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
