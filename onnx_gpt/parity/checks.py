"""What one forward pass cannot show: decode equals prefill, a batch equals its members, no token sees the future."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnx_gpt.parity.candidate import Candidate
from onnx_gpt.parity.metrics import divergence, log_softmax
from onnx_gpt.report import Check

PREFILL = 16
STEPS = 16


def run_checks(candidate: Candidate, tokens: np.ndarray, limit: float) -> dict[str, Check]:
    """Compare a bundle with itself, in mean KL divergence over the positions compared.

    Logits themselves are no measure here: quantized kernels sum in another order for one row than for many, and where
    that moves a rounding of an activation, single logits jump while the distribution stays.

    Args:
        tokens: int64 ``[S]``, at least 8.
        limit: largest mean KL allowed, nats a token.
    """
    checks: dict[str, Callable[[Candidate, np.ndarray, np.ndarray], float]] = {"causal": causal}
    if candidate.cached:
        checks |= {"decode": decode, "batch": batch}
    tokens = tokens[: PREFILL + STEPS]
    whole = candidate.logits(tokens[None])[0]
    values = {name: check(candidate, tokens, whole) for name, check in checks.items()}
    return {name: Check(value=v, limit=limit, passed=bool(v <= limit)) for name, v in values.items()}


def decode(candidate: Candidate, tokens: np.ndarray, whole: np.ndarray) -> float:
    """Prefill half of the tokens, feed the rest one by one, compare with one prefill of all."""
    half = len(tokens) // 2
    logits, past = candidate.run(tokens[None, :half])
    stepped = [logits[0]]
    for t in range(half, len(tokens)):
        logits, past = candidate.run(tokens[None, t : t + 1], past=past)
        stepped.append(logits[0])
    return _kl(np.concatenate(stepped), whole)


def batch(candidate: Candidate, tokens: np.ndarray, whole: np.ndarray) -> float:
    """Two sequences of different lengths, padded on the right, against each alone; then a decode step of both."""
    short = len(tokens) // 2
    rows = np.stack([tokens[:-1], tokens[:-1]])
    rows[1, short:] = 0
    mask = np.ones_like(rows)
    mask[1, short:] = 0
    logits, past = candidate.run(rows, mask)
    step = np.array([[tokens[-1]], [tokens[short]]])
    last, _ = candidate.run(step, np.concatenate([mask, np.ones((2, 1), np.int64)], axis=1), past)
    ours = np.concatenate([logits[0], last[0], logits[1, :short], last[1]])
    return _kl(ours, np.concatenate([whole, whole[: short + 1]]))


def causal(candidate: Candidate, tokens: np.ndarray, whole: np.ndarray) -> float:
    """Change the last token: no logits before it may move."""
    changed = tokens.copy()
    changed[-1] = (changed[-1] + 1) % whole.shape[-1]
    return _kl(candidate.logits(changed[None])[0, :-1], whole[:-1])


def _kl(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(divergence(log_softmax(ours), log_softmax(theirs)).mean())
