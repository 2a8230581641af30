"""Parity of any two models: sources, bundles and graphs, whoever made them."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from exporter.checkpoint import GraphSource
from exporter.errors import Exit, OnnxGptError
from onnx_gpt.exporting import require_tokenizer_fits
from onnx_gpt.parity.cases import cases
from onnx_gpt.parity.gate import Facts, compare
from onnx_gpt.parity.limits import BUDGETS, limits_of
from onnx_gpt.parity.noise import measure
from onnx_gpt.parity.prove import UNSTATED_WINDOW, WINDOW, stated
from onnx_gpt.parity.recalled import Recalled
from onnx_gpt.parity.sides import Side, as_candidate, open_side, require_same_vocabulary
from onnx_gpt.parity.standard import reference_model
from onnx_gpt.parity.structure import Standing, structure_checks
from onnx_gpt.parity.text import EvaluationTokens, evaluation_tokens, even_window, require_some
from onnx_gpt.parity.tokenizers import tokenizer_check
from onnx_gpt.progress import Progress, Silent
from onnx_gpt.report import Limits, Parity

CASE_BYTES = 1 << 30
"""Bytes that a case's cache may take."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two sides and what will be asked of them, before anything is run.

    Attributes:
        scheme: a key of `BUDGETS`: the lossier of the two sides'.
        limits: none of them left open.
    """

    candidate: Side
    reference: Side
    scheme: str
    facts: Facts
    limits: Limits

    def echo(self) -> dict[str, object]:
        """Plain values, for people."""
        return {
            "candidate": f"{self.candidate.uri} ({self.candidate.scheme})",
            "reference": f"{self.reference.uri} ({self.reference.scheme})",
            "parameters": self.facts.parameters or "unknown",
            "context": self.facts.context or "nobody has said it",
            "limits": stated(self.scheme, self.limits),
        }


def plan_comparison(model: str | Path, against: str | Path, limits: Limits | None = None) -> Comparison:
    """Open both sides and settle the limits.

    Raises:
        OnnxGptError: where either cannot be opened.
    """
    candidate, reference = open_side(str(model)), open_side(str(against))
    scheme = max(candidate.scheme, reference.scheme, key=list(BUDGETS).index)
    one, other = candidate.facts, reference.facts
    contexts = [facts.context for facts in (one, other) if facts.context is not None]
    facts = Facts(other.parameters or one.parameters, min(contexts, default=None), other.window or one.window)
    filled = (limits or Limits()).or_else(limits_of(scheme, facts.parameters))
    return Comparison(candidate, reference, scheme, facts, filled)


def validate(
    model: str | Path,
    against: str | Path,
    *,
    limits: Limits | None = None,
    text: Path | None = None,
    tokens: int = 2048,
    skip: Sequence[str] = (),
    threads: int = 0,
    progress: Progress | None = None,
) -> Parity:
    """Measure a model's parity with another; the verdict is in the result.

    Args:
        model: the candidate: a source, a bundle's folder, or anyone's ``.onnx``.
        against: the reference, likewise. A quantized one is run as it is, any other as exactly as it can be.
        limits: thresholds; those of the lossier side's scheme and of the model's size by default.
        text: UTF-8 file to evaluate on; the held-out part of Python's own documentation by default.
        tokens: predicted tokens to evaluate on, at least.
        skip: cases that are not to be run (docs/parity.md); the result says so.
        threads: of onnxruntime; its own choice by default.

    Raises:
        OnnxGptError: where either cannot be opened or run. A failed verdict is a result, not an error.
    """
    plan = plan_comparison(model, against, limits)
    return run_comparison(plan, text=text, tokens=tokens, skip=skip, threads=threads, progress=progress)


def run_comparison(
    plan: Comparison,
    *,
    text: Path | None = None,
    tokens: int = 2048,
    skip: Sequence[str] = (),
    threads: int = 0,
    progress: Progress | None = None,
) -> Parity:
    """`validate` with both sides open."""
    require_some(tokens)
    _require_cases(skip)
    progress = progress or Silent()
    progress.stage("loading")
    with (
        reference_model(plan.reference.opened, progress, threads=threads) as model,
        tempfile.TemporaryDirectory(prefix="onnx-gpt-reference-") as folder,
        as_candidate(plan.candidate, threads, progress) as candidate,
    ):
        reference = Recalled(model, Path(folder), most=1)  # a float twin is held against the first window too
        one = np.zeros((1, 1), np.int64)
        sizes = [int(model.logits(one).shape[-1]) for model in (candidate, reference)]
        require_same_vocabulary(sizes[0], sizes[1], (plan.candidate.uri, plan.reference.uri))
        for side in (plan.candidate, plan.reference):
            require_tokenizer_fits(side.tokenizer, sizes[0])
        windows = _windows(plan, sizes[1], text, tokens)
        extra = {"tokenizer": tokenizer_check(plan.candidate.tokenizer, plan.reference.tokenizer, text)}
        if isinstance(plan.candidate.opened, GraphSource):
            progress.stage("structure")
            noise = functools.partial(measure, reference, windows.windows)
            against = Standing(reference, plan.facts, windows.windows, noise, CASE_BYTES, skip)
            path, source = plan.candidate.opened.path, plan.reference.opened
            extra |= structure_checks(path, plan.scheme, source, against, progress)
        progress.stage("parity")
        return compare(
            candidate,
            reference,
            windows,
            scheme=plan.scheme,
            limits=plan.limits,
            facts=plan.facts,
            memory=CASE_BYTES,
            extra=extra,
            skip=skip,
            progress=progress.advance,
        )


def _require_cases(names: Sequence[str]) -> None:
    """Raise ``case-unknown`` (exit 2) for a case that there is not."""
    unknown = [name for name in names if name not in cases()]
    if unknown:
        raise OnnxGptError(
            "case-unknown",
            f"there is no case {', '.join(unknown)}",
            f"use some of {', '.join(cases())}",
            exit=Exit.USAGE,
        )


def _windows(plan: Comparison, vocab_size: int, text: Path | None, tokens: int) -> EvaluationTokens:
    return evaluation_tokens(
        plan.reference.tokenizer or plan.candidate.tokenizer,
        vocab_size,
        tokens=tokens,
        window=even_window(tokens, min(WINDOW, plan.facts.context or UNSTATED_WINDOW)),
        path=text,
    )
