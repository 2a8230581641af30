"""How far two models' next-token distributions are apart, in the terms of llama.cpp's perplexity tool."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from onnx_gpt.parity.noise import deviation, spread_of
from onnx_gpt.report import Deviation

NEAR = 0.105
"""Nats between two choices of which one is nine tenths as likely as the other."""


@dataclasses.dataclass
class Agreement:
    """Running comparison of logits, one window after another; memory is a few numbers a token."""

    kl: list[np.ndarray] = dataclasses.field(default_factory=list)
    nll: list[np.ndarray] = dataclasses.field(default_factory=list)
    reference_nll: list[np.ndarray] = dataclasses.field(default_factory=list)
    gap: list[np.ndarray] = dataclasses.field(default_factory=list)
    difference: list[np.ndarray] = dataclasses.field(default_factory=list)
    max_abs: float = 0.0

    def add(self, logits: np.ndarray, reference: np.ndarray, targets: np.ndarray) -> None:
        """Compare a window.

        Args:
            logits, reference: float ``[S, V]``.
            targets: int ``[S]``, the token that follows each position.
        """
        for start in range(0, len(targets), 64):  # a block of rows keeps float64 temporaries small
            rows = slice(start, start + 64)
            ours, theirs = log_softmax(logits[rows]), log_softmax(reference[rows])
            self.kl.append(divergence(ours, theirs))
            index = np.arange(len(ours))
            self.nll.append(-ours[index, targets[rows]])
            self.reference_nll.append(-theirs[index, targets[rows]])
            chosen = logits[rows].argmax(-1)
            gap = reference[rows].max(-1) - reference[rows][index, chosen]
            self.gap.append(gap)
            delta = logits[rows] - reference[rows]
            self.difference.append(spread_of(delta))
            self.max_abs = max(self.max_abs, float(np.abs(delta).max()))

    @property
    def tokens(self) -> int:
        return sum(len(kl) for kl in self.kl)

    def top1(self, tie: float) -> tuple[float, int]:
        """Share of positions with the same choice or a tie closer than ``tie``; how many choices differ nearly tied.

        Nearly tied is what the reference itself would choose nine times for ten of its own choice.
        """
        gap = np.concatenate(self.gap)
        return float((gap <= tie).mean()), int(((gap > 0) & (gap <= max(tie, NEAR))).sum())

    def deviation(self) -> Deviation:
        """How far the logits are apart (`onnx_gpt.parity.noise`)."""
        return deviation(np.concatenate(self.difference))

    def kl_error(self) -> float:
        """Standard error of the mean KL."""
        return _error(np.concatenate(self.kl))

    def log_ratio(self) -> tuple[float, float]:
        """Logarithm of the perplexity as a multiple of the reference's, and its standard error.

        The two are paired by token (llama.cpp's perplexity tool), so that the error is that of their difference.
        """
        difference = np.concatenate(self.nll) - np.concatenate(self.reference_nll)
        return float(difference.mean()), _error(difference)

    def kl_statistics(self) -> tuple[float, float, float]:
        """Mean, 99th percentile and maximum of the KL divergence, nats a token."""
        kl = np.concatenate(self.kl)
        return float(kl.mean()), float(np.quantile(kl, 0.99)), float(kl.max())

    def figures(self, tie: float) -> dict[str, Any]:
        """All of it by the names of `Parity`; ``tie`` as of `top1`."""
        mean_kl, p99_kl, max_kl = self.kl_statistics()
        top1, near_ties = self.top1(tie)
        perplexity, reference_perplexity = self.perplexities()
        log_ratio, log_error = self.log_ratio()
        return {
            "tokens": self.tokens,
            "max_abs": self.max_abs,
            "mean_kl": mean_kl,
            "mean_kl_error": self.kl_error(),
            "p99_kl": p99_kl,
            "max_kl": max_kl,
            "top1": top1,
            "near_ties": near_ties,
            "perplexity": perplexity,
            "reference_perplexity": reference_perplexity,
            "perplexity_ratio_error": math.exp(log_ratio) * log_error,
            "deviation": self.deviation(),
        }

    def perplexities(self) -> tuple[float, float]:
        """Perplexity of the candidate and of the reference on the same tokens."""
        return (
            float(np.exp(np.concatenate(self.nll).mean())),
            float(np.exp(np.concatenate(self.reference_nll).mean())),
        )


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities over the last axis, in float64: KLs of 1e-9 are below float32's noise."""
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(-1, keepdims=True))
    return wide


def divergence(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """KL(theirs ‖ ours) of each row of log-probabilities ``[S, V]``, in nats: float64 ``[S]``."""
    kl: np.ndarray = (np.exp(theirs) * (theirs - ours)).sum(-1).clip(min=0.0)
    return kl


def mean_kl(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Mean KL(theirs ‖ ours) of rows of logits ``[N, V]``, in nats."""
    return float(divergence(log_softmax(ours), log_softmax(theirs)).mean())


def _error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
