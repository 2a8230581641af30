"""The verdict: a candidate against its reference, under limits that are stated before the run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal, Protocol

import numpy as np

from onnx_gpt.parity.candidate import Candidate
from onnx_gpt.parity.checks import run_checks
from onnx_gpt.parity.metrics import Agreement
from onnx_gpt.parity.text import EvaluationTokens
from onnx_gpt.report import Check, Limits, Parity

GREEDY_PROMPT = 32
FLOAT_TIE = 1e-3
"""Logits of an exact candidate that lie closer than this are a tie: float32 attention reorders sums this much."""

DEFAULT_LIMITS: dict[str, Limits] = {
    "none": Limits(max_kl=1e-6, min_top1=1.0, max_perplexity_ratio=1.0001),
    "none, int8 cache": Limits(max_kl=0.01, min_top1=0.95, max_perplexity_ratio=1.01),
    "int8": Limits(max_kl=0.02, min_top1=0.92, max_perplexity_ratio=1.03),
    "w8a8": Limits(max_kl=0.05, min_top1=0.90, max_perplexity_ratio=1.05),
    "int4": Limits(max_kl=0.60, min_top1=0.50, max_perplexity_ratio=2.0),
    "keep": Limits(max_kl=0.02, min_top1=0.92, max_perplexity_ratio=1.03),
}
"""By scheme. Float is gated at its noise; int8 and kept codes lose their activations' rounding only; int4 is judged
for models of some 100M parameters, the hardest ones: larger models stay far below. An int8 cache does less damage than
any quantization of weights, so that it has limits of its own only where the weights are float."""

SELF_LIMIT = {"none": 1e-6, "none, int8 cache": 1e-3, "int8": 0.02, "w8a8": 0.02, "int4": 0.02, "keep": 0.02}
"""Mean KL by which a bundle may differ from itself in another batch or step."""


def gate_of(quantize: str, kv_cache: str) -> str:
    """The key of `DEFAULT_LIMITS` for a scheme of weights and a type of cache."""
    return "none, int8 cache" if (quantize, kv_cache) == ("none", "int8") else quantize


class ReferenceModel(Protocol):
    """What a candidate is compared with."""

    @property
    def name(self) -> str: ...

    def logits(self, tokens: np.ndarray) -> np.ndarray: ...

    def greedy(self, tokens: np.ndarray, count: int) -> list[int]: ...


@dataclasses.dataclass(frozen=True)
class Greedy:
    """A greedy continuation of both: how long they agree, and whether they part at a tie."""

    tokens: int
    agreed: int
    divergence: Literal["none", "near tie", "different"]


def compare(
    candidate: Candidate,
    reference: ReferenceModel,
    text: EvaluationTokens,
    *,
    scheme: str,
    limits: Limits,
    greedy_tokens: int = 64,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Parity:
    """Measure agreement and judge it.

    Args:
        scheme: a key of `DEFAULT_LIMITS`; decides what counts as a tie and how exact the self-checks are.
        progress: told how many windows are done.
    """
    agreement = Agreement()
    total = len(text.windows)
    for i, window in enumerate(text.windows):
        ours, theirs = candidate.logits(window[None])[0], reference.logits(window[None])[0]
        agreement.add(ours[:-1], theirs[:-1], window[1:])
        progress(i + 1, total)
    tie = FLOAT_TIE if scheme == "none" else 0.0
    prompt = text.windows[0][: min(GREEDY_PROMPT, text.windows.shape[1] // 2)]
    greedy = _greedy(candidate, reference, prompt, greedy_tokens, tie or FLOAT_TIE)
    checks = run_checks(candidate, text.windows[0], SELF_LIMIT[scheme])
    return _judge(agreement, greedy, checks, reference.name, text, tie, limits, scheme)


def _greedy(
    candidate: Candidate, reference: ReferenceModel, prompt: np.ndarray, count: int, tie: float
) -> Greedy:
    ours, theirs = candidate.greedy(prompt, count), reference.greedy(prompt, count)
    agreed = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b), count)
    if agreed == count:
        return Greedy(count, count, "none")
    sequence = np.concatenate([prompt, np.array(theirs[:agreed], np.int64)])
    logits = reference.logits(sequence[None])[0, -1]
    near = float(logits[theirs[agreed]] - logits[ours[agreed]]) <= tie
    return Greedy(count, agreed, "near tie" if near else "different")


def _judge(
    agreement: Agreement,
    greedy: Greedy,
    checks: dict[str, Check],
    reference: str,
    text: EvaluationTokens,
    tie: float,
    limits: Limits,
    scheme: str,
) -> Parity:
    mean_kl, p99_kl, max_kl = agreement.kl_statistics()
    top1, near_ties = agreement.top1(tie)
    perplexity, reference_perplexity = agreement.perplexities()
    failures = [
        f"mean KL {mean_kl:.3g} > {limits.max_kl:g}" if not mean_kl <= limits.max_kl else "",
        f"top-1 {top1:.4f} < {limits.min_top1:g}" if not top1 >= limits.min_top1 else "",
        f"perplexity ratio {perplexity / reference_perplexity:.4f} > {limits.max_perplexity_ratio:g}"
        if not perplexity / reference_perplexity <= limits.max_perplexity_ratio
        else "",
        "greedy continuation differs" if scheme == "none" and greedy.divergence == "different" else "",
        *(
            f"{name}: mean KL {check.value:.3g} > {check.limit:.3g}"
            for name, check in checks.items()
            if not check.passed
        ),
    ]
    failures = [failure for failure in failures if failure]
    return Parity(
        reference=reference,
        text=text.origin,
        tokens=agreement.tokens,
        max_abs=agreement.max_abs,
        mean_kl=mean_kl,
        p99_kl=p99_kl,
        max_kl=max_kl,
        top1=top1,
        near_ties=near_ties,
        perplexity=perplexity,
        reference_perplexity=reference_perplexity,
        greedy_tokens=greedy.tokens,
        greedy_agreed=greedy.agreed,
        greedy_divergence=greedy.divergence,
        checks=checks,
        limits=limits,
        verdict="fail" if failures else "pass",
        failures=tuple(failures),
    )
