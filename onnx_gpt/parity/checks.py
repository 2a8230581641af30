"""What a single forward pass cannot show: decode equals prefill, a batch equals its members, no token sees the future."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnx_gpt.parity.candidate import Candidate
from onnx_gpt.report import Check

PREFILL = 16
STEPS = 16


def run_checks(candidate: Candidate, tokens: np.ndarray, tolerance: float) -> dict[str, Check]:
    """Compare a bundle with itself.

    Args:
        tokens: int64 ``[S]``, at least 8.
        tolerance: largest |Δlogit| allowed, as a share of the largest |logit|.
    """
    checks: dict[str, Callable[[Candidate, np.ndarray, np.ndarray], float]] = {"causal": causal}
    if candidate.cached:
        checks |= {"decode": decode, "batch": batch}
    tokens = tokens[: PREFILL + STEPS]
    whole = candidate.logits(tokens[None])[0]
    limit = tolerance * float(np.abs(whole).max())
    results = {}
    for name, check in checks.items():
        value = check(candidate, tokens, whole)
        results[name] = Check(value=value, limit=limit, passed=bool(value <= limit))
    return results


def decode(candidate: Candidate, tokens: np.ndarray, whole: np.ndarray) -> float:
    """Prefill half of the tokens, feed the rest one by one, compare with one prefill of all."""
    half = len(tokens) // 2
    logits, past = candidate.run(tokens[None, :half])
    worst = float(np.abs(logits[0] - whole[:half]).max())
    for t in range(half, len(tokens)):
        logits, past = candidate.run(tokens[None, t : t + 1], past=past)
        worst = max(worst, float(np.abs(logits[0, 0] - whole[t]).max()))
    return worst


def batch(candidate: Candidate, tokens: np.ndarray, whole: np.ndarray) -> float:
    """Two sequences of different lengths, padded on the right, against each alone; then one decode step of both."""
    short = len(tokens) // 2
    rows = np.stack([tokens, np.concatenate([tokens[:short], np.zeros(len(tokens) - short, np.int64)])])
    mask = np.ones_like(rows)
    mask[1, short:] = 0
    logits, _ = candidate.run(rows, mask)
    return max(float(np.abs(logits[0] - whole).max()), float(np.abs(logits[1, :short] - whole[:short]).max()))


def causal(candidate: Candidate, tokens: np.ndarray, whole: np.ndarray) -> float:
    """Change the last token: no logits before it may move."""
    changed = tokens.copy()
    changed[-1] = (changed[-1] + 1) % whole.shape[-1]
    logits = candidate.logits(changed[None])[0]
    return float(np.abs(logits[:-1] - whole[:-1]).max())
