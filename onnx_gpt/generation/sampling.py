"""From logits to the next token.

Greedy unless a temperature is given. Otherwise the steps and their order are those of transformers:
repetition penalty → temperature → top-k → top-p → softmax → draw. Ties go to the lower token id, so that
``top_k=1`` is greedy.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from exporter.errors import Exit, OnnxGptError, rejected

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How to choose.

    Attributes:
        temperature: 0 is greedy; logits are divided by it.
        top_k: only the k most likely tokens; 0 for all.
        top_p: only the most likely tokens, as many as it takes to hold this share of probability; 1 for all.
        repetition_penalty: logits of tokens that occurred are divided by it where positive and multiplied by
            it where negative (Keskar et al. 2019); 1 for none.

    Raises:
        OnnxGptError: ``sampling-invalid`` (exit 2).
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise _invalid(f"temperature is {self.temperature}", "use 0 for greedy, or a number above 0")
        if self.top_k < 0:
            raise _invalid(f"top_k is {self.top_k}", "use 0 for all tokens, or a whole number above 0")
        if not 0 < self.top_p <= 1:
            raise _invalid(f"top_p is {self.top_p}", "use a number above 0, at most 1")
        if not 1e-9 <= self.repetition_penalty <= 1e9:
            raise _invalid(
                f"repetition_penalty is {self.repetition_penalty}", "use 1 for none, or more: 1.1, say"
            )
        if self.temperature == 0 and (self.top_k > 0 or self.top_p < 1):
            raise _invalid(
                "top_k and top_p have no effect at temperature 0", "give a temperature, such as 1.0"
            )


def _invalid(cause: str, remedy: str) -> OnnxGptError:
    return OnnxGptError("sampling-invalid", cause, remedy, exit=Exit.USAGE)


def choose(logits: Array, occurred: Array, sampling: Sampling, random: np.random.Generator) -> int:
    """The next token.

    Args:
        logits: ``[V]`` float32.
        occurred: ids of the tokens so far, prompt included, in any order.
        random: drawn from once for each sampled token, never for a greedy one.

    Raises:
        OnnxGptError: ``logits-not-finite``.
    """
    logits = penalised(logits, occurred, sampling.repetition_penalty)
    best = int(logits.argmax())  # a NaN comes out as the greatest
    if not np.isfinite(logits[best]):
        raise rejected(
            "logits-not-finite",
            "the model gave logits that are not finite",
            "check the bundle with `onnx-gpt validate`",
        )
    if sampling.temperature == 0:
        return best
    ids, probabilities = distribution(logits, sampling)
    return int(ids[_draw(probabilities, random.random())])


def _draw(probabilities: Array, u: float) -> int:
    """Inverse of the cumulative distribution at ``u`` in [0, 1)."""
    cumulative = probabilities.cumsum()
    return min(int(cumulative.searchsorted(u * cumulative[-1], side="right")), len(probabilities) - 1)


def penalised(logits: Array, occurred: Array, penalty: float) -> Array:
    """Logits with those of tokens that occurred made smaller; the given array where the penalty is 1."""
    if penalty == 1:
        return logits
    logits = logits.copy()
    seen = logits[occurred]
    logits[occurred] = np.where(seen < 0, seen * penalty, seen / penalty)
    return logits


def distribution(logits: Array, sampling: Sampling) -> tuple[Array, Array]:
    """What is drawn from, at a temperature above 0: token ids and float64 probabilities that sum to 1.

    Ids ascend, or with top_p their probabilities descend.
    """
    ids = _top_k(logits, sampling.top_k)
    scaled = logits[ids]
    # The maximum goes first, so that nothing overflows; temperatures beyond float32's range are those at its ends.
    temperature = np.float32(min(max(sampling.temperature, 1e-30), 1e30))
    weights = np.exp((scaled - scaled.max()) / temperature)
    total = weights.sum(dtype=np.float64)
    if sampling.top_p < 1:
        # No token below this can be within top_p, and sorting the few that are left is quick.
        likely = np.flatnonzero(weights > (1 - sampling.top_p) / len(weights) * total)
        likely = likely[np.argsort(-scaled[likely], kind="stable")]
        descending = weights[likely].astype(np.float64)
        before = (descending.cumsum() - descending) / total
        within = max(1, int(before.searchsorted(sampling.top_p, side="left")))
        ids, weights = ids[likely[:within]], weights[likely[:within]]
    probabilities = weights.astype(np.float64)
    return ids, probabilities / probabilities.sum()


def _top_k(logits: Array, k: int) -> Array:
    """Ids of the k greatest logits, ascending; of equal ones the lower ids."""
    if k == 0 or k >= len(logits):
        return np.arange(len(logits))
    least = np.partition(logits, len(logits) - k)[len(logits) - k]
    above = np.flatnonzero(logits > least)
    level = np.flatnonzero(logits == least)[: k - len(above)]
    return np.sort(np.concatenate([above, level]))
