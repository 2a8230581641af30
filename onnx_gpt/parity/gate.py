"""The verdict: a candidate against its reference, under limits that are stated before the run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Literal, Protocol

import numpy as np

from exporter.errors import Exit, OnnxGptError
from onnx_gpt.parity.cases import Model, Trial
from onnx_gpt.parity.checks import LENGTH, run_checks
from onnx_gpt.parity.limits import MAX_FACTOR, P99_FACTOR, self_limit
from onnx_gpt.parity.metrics import NEAR, Agreement
from onnx_gpt.parity.noise import FACTOR, WORST_FACTOR, measure
from onnx_gpt.parity.text import EvaluationTokens
from onnx_gpt.report import Check, Limits, Noise, Parity

GREEDY_PROMPT, GREEDY_TOKENS = 32, 64
SIGMAS = 5.0
"""Of 50,000 logits whose errors have a standard deviation of 1, the largest is 4 to 5 away."""
ERRORS = 2.0
"""A budget is exceeded where its measure is beyond it by so many standard errors: not by the choice of text."""


class Reference(Model, Protocol):
    """What a candidate is compared with: it can be computed in several ways."""

    def alternatives(self, tokens: np.ndarray) -> Iterator[tuple[str, np.ndarray]]: ...


class Greedily(Model, Protocol):
    """A candidate that goes on with a text."""

    def greedy(self, tokens: np.ndarray, count: int) -> list[int]: ...


class Either(Reference, Greedily, Protocol):
    """A model that may be one or the other."""


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of a model: parameters, context, sliding window; None where nobody has said it."""

    parameters: int | None = None
    context: int | None = None
    window: int | None = None


@dataclasses.dataclass(frozen=True)
class Greedy:
    """A greedy continuation of both: how long they agree, and whether they part at a tie."""

    tokens: int
    agreed: int
    divergence: Literal["none", "near tie", "different"]


def compare(
    candidate: Greedily,
    reference: Reference,
    text: EvaluationTokens,
    *,
    scheme: str,
    limits: Limits,
    facts: Facts,
    memory: int = 1 << 28,
    noise: Noise | None = None,
    extra: Mapping[str, Check] | None = None,
    skip: Collection[str] = (),
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> Parity:
    """Measure agreement and judge it.

    Args:
        scheme: a key of `BUDGETS`; a float candidate, ``none``, is judged by the reference's noise.
        limits: none of them left open.
        memory: bytes that the cache of a case may take.
        noise: the reference's, where it is known already.
        extra: cases that have been run already.
        skip: cases that are not to be run.
        progress: told how many windows are done.
    """
    exact = scheme == "none"
    if exact and noise is None:
        progress(0, len(text.windows), "the reference's own noise")
        noise = measure(reference, text.windows)
    agreement, vocab = _agreement(candidate, reference, text, progress)
    tie = SIGMAS * WORST_FACTOR * noise.worst if exact and noise is not None else 0.0
    count = min(GREEDY_TOKENS, text.windows.shape[1] // 2)
    prompt = text.windows[0][: min(GREEDY_PROMPT, text.windows.shape[1] // 2)]
    progress(len(text.windows), len(text.windows), "greedy text")
    greedy = _greedy(candidate, reference, prompt, count, tie or NEAR)
    tokens = text.windows[0][:LENGTH]
    checks = run_checks(
        Trial(candidate, reference, tokens, vocab, facts.context, facts.window, memory),
        noise=noise if exact else None,
        limit=self_limit(scheme),
        far_limit=P99_FACTOR * limits.numbers()[0],
        skip=skip,
        progress=lambda name: progress(len(text.windows), len(text.windows), name),
    )
    measured = Parity(
        candidate=candidate.name,
        reference=reference.name,
        scheme=scheme,
        parameters=facts.parameters,
        text=text.origin,
        **agreement.figures(tie),
        greedy_tokens=greedy.tokens,
        greedy_agreed=greedy.agreed,
        greedy_divergence=greedy.divergence,
        noise=noise,
        checks={**checks, **(extra or {})},
        limits=limits,
        verdict="pass",
    )
    failures = tuple(failures_of(measured))
    return measured.model_copy(update={"failures": failures, "verdict": "fail" if failures else "pass"})


def _agreement(
    candidate: Model, reference: Model, text: EvaluationTokens, progress: Callable[[int, int, str], None]
) -> tuple[Agreement, int]:
    """How far the two are apart on all windows, and the size of their vocabulary."""
    agreement = Agreement()
    for i, window in enumerate(text.windows):
        ours, theirs = candidate.logits(window[None])[0], reference.logits(window[None])[0]
        _require_shape(ours, theirs)
        agreement.add(ours[:-1], theirs[:-1], window[1:])
        progress(i + 1, len(text.windows), "windows of text")
    return agreement, ours.shape[-1]


def _require_shape(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Raise ``logits-shape`` (exit 5) where the two do not give logits of as many tokens."""
    if ours.shape != theirs.shape:
        raise OnnxGptError(
            "logits-shape",
            f"the candidate gives logits {list(ours.shape)} where the reference gives {list(theirs.shape)}",
            "export the candidate with logits of all tokens",
            exit=Exit.PARITY,
        )


def _greedy(candidate: Greedily, reference: Reference, prompt: np.ndarray, count: int, tie: float) -> Greedy:
    """The candidate's text, each token of it beside what the reference chooses after the same tokens.

    Up to the first that differs that is the reference's own greedy text, for one pass of it.
    """
    ours = candidate.greedy(prompt, count)
    sequence = np.concatenate([prompt, np.array(ours[:-1], np.int64)])
    logits = reference.logits(sequence[None])[0, len(prompt) - 1 :]
    theirs = logits.argmax(-1)
    agreed = next((i for i, token in enumerate(ours) if token != theirs[i]), count)
    if agreed == count:
        return Greedy(count, count, "none")
    near = float(logits[agreed, theirs[agreed]] - logits[agreed, ours[agreed]]) <= tie
    return Greedy(count, agreed, "near tie" if near else "different")


def failures_of(parity: Parity) -> Iterator[str]:
    """What is beyond its limit, one line each."""
    max_kl, min_top1, max_ratio = parity.limits.numbers()
    if parity.scheme == "none" and parity.noise is not None and parity.deviation is not None:
        found, noise = parity.deviation, parity.noise
        if not found.rms <= FACTOR * noise.rms:
            yield f"logits differ by {found.rms / noise.rms:.3g} times the reference's own noise > {FACTOR:g}"
        if not found.worst <= WORST_FACTOR * noise.worst:
            yield (
                f"logits of the worst position differ by {found.worst / noise.worst:.3g} times "
                f"the reference's own noise > {WORST_FACTOR:g}"
            )
        if parity.greedy_divergence == "different":
            yield f"greedy text differs from token {parity.greedy_agreed} on"
    if not parity.mean_kl - ERRORS * parity.mean_kl_error <= max_kl:
        yield f"mean KL {parity.mean_kl:.3g} > {max_kl:g}"
    if not parity.p99_kl <= P99_FACTOR * max_kl:
        yield f"99th percentile of the KL {parity.p99_kl:.3g} > {P99_FACTOR * max_kl:g}"
    if not parity.max_kl <= MAX_FACTOR * max_kl:
        yield f"largest KL {parity.max_kl:.3g} > {MAX_FACTOR * max_kl:g}"
    if not parity.top1 + ERRORS * top1_error(parity) >= min_top1:
        yield f"top-1 {parity.top1:.4f} < {min_top1:g}"
    ratio = parity.perplexity / parity.reference_perplexity
    if not ratio - ERRORS * parity.perplexity_ratio_error <= max_ratio:
        yield f"perplexity ratio {ratio:.4f} > {max_ratio:g}"
    for name, check in parity.checks.items():
        if check.verdict == "fail":
            measured = (
                ""
                if check.value is None or check.limit is None
                else f": {check.value:.3g} > {check.limit:.3g} {check.unit}"
            )
            yield f"{name}{measured} ({check.detail})"


def top1_error(parity: Parity) -> float:
    """Standard error of the share of tokens with the same choice."""
    return math.sqrt(max(parity.top1 * (1 - parity.top1), 0.0) / max(parity.tokens, 1))
