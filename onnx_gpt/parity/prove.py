"""Parity of a written model: which tokens, which reference, which limits, and the comparison."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from exporter.checkpoint import Checkpoint, Opened
from exporter.errors import Exit, OnnxGptError
from onnx_gpt.exporting import Exported
from onnx_gpt.parity.candidate import Candidate
from onnx_gpt.parity.gate import compare
from onnx_gpt.parity.limits import limits_of, scheme_of
from onnx_gpt.parity.recalled import Recalled
from onnx_gpt.parity.standard import Standard, facts_of, has_torch, reference_missing, reference_model
from onnx_gpt.parity.text import EvaluationTokens, evaluation_tokens, even_window
from onnx_gpt.progress import Progress
from onnx_gpt.recipe import TOKENS, Recipe
from onnx_gpt.report import Limits, Parity

WINDOW = 512
"""Tokens of a window of text at most, where the model's context holds as many."""
UNSTATED_WINDOW = 64
"""The same where nobody has stated the context, as of a user's module."""
MOST_KEPT = 16
"""Windows of text whose logits are kept where several models are held against one reference."""
CASE_BYTES = 64 << 20
"""Bytes that a case's cache may take while a bundle is made; `validate` takes more."""


def prove_against(
    reference: Standard, text: EvaluationTokens, model: Path, recipe: Recipe, progress: Progress
) -> Parity:
    """Compare a written model with a reference, which may serve several after each other, under a recipe's limits."""
    scheme = judged_as(scheme_of(model), recipe.gate)
    limits = (recipe.limits or Limits()).or_else(limits_of(scheme, reference.facts.parameters))
    progress.stage(f"parity, {stated(scheme, limits)}")
    return compare(
        Candidate(model, name="bundle"),
        reference.model,
        text,
        scheme=scheme,
        limits=limits,
        facts=reference.facts,
        memory=CASE_BYTES,
        noise=reference.noise(text.windows) if scheme == "none" else None,
        progress=progress.advance,
    )


def judged_as(graph: str, asked: str) -> str:
    """The budget's key: what the graph is; what the recipe knows better is how its codes were chosen.

    Args:
        graph: of `scheme_of`.
        asked: of `gate_of`.
    """
    refined = {"keep": ("int8", "int4"), "int4, calibrated": ("int4",)}
    return asked if graph in refined.get(asked, ()) else graph


def stated(scheme: str, limits: Limits) -> str:
    """The limits in words, before the run."""
    max_kl, min_top1, max_ratio = limits.numbers()
    budget = f"mean KL ≤ {max_kl:g}, top-1 ≥ {min_top1:g}, perplexity ≤ {max_ratio:g} ×"
    return f"{scheme}: {budget}" if scheme != "none" else f"float: the reference's own noise, {budget}"


def evaluation_text(opened: Opened, exported: Exported, recipe: Recipe) -> EvaluationTokens:
    """The tokens that a job is judged on."""
    tokens = recipe.tokens or TOKENS
    return evaluation_tokens(
        opened.files.get("tokenizer.json"),
        exported.vocab_size,
        tokens=tokens,
        window=even_window(tokens, min(WINDOW, exported.context_length or UNSTATED_WINDOW)),
        path=recipe.text,
    )


@contextmanager
def reference_of(
    opened: Opened, exported: Exported, recipe: Recipe, progress: Progress, *, models: int = 1
) -> Iterator[Standard]:
    """PyTorch in float32; where it is not installed, our own float bundle stands in for a quantized one.

    A foreign graph's reference is the graph itself, as its exporter left it.

    Args:
        models: how many will be held against it; for several, what it gives is kept in files.
    """
    if _wants_torch(opened, recipe) and not has_torch():
        raise reference_missing()
    with (
        reference_model(opened, progress, context=recipe.context_length, module=exported.module) as model,
        tempfile.TemporaryDirectory(prefix="onnx-gpt-reference-") as folder,
    ):
        known = Recalled(model, Path(folder), MOST_KEPT) if models > 1 else model
        yield Standard(known, facts_of(exported))


def _wants_torch(opened: Opened, recipe: Recipe) -> bool:
    """Whether our own float graph would be judge in its own cause."""
    return isinstance(opened, Checkpoint) and recipe.quantize == "none"


def require_passed(parity: Parity, quantize: str, name: str = "") -> None:
    """Raise ``parity-failed`` (exit 5) for a model of a scheme; ``name`` tells it among several."""
    if parity.verdict == "fail":
        gentler = (
            "choose a gentler scheme, or state other limits with --max-kl, --min-top1, --max-perplexity-ratio"
        )
        exact = "float should be exact: `onnx-gpt bisect SOURCE` says which pass is wrong"
        raise OnnxGptError(
            "parity-failed",
            f"{name or 'the bundle'} is not near enough to {parity.reference}; nothing was published",
            exact if quantize == "none" else gentler,
            exit=Exit.PARITY,
            details=parity.failures,
        )
