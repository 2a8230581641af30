"""Parity of a written model: which tokens, which reference, and the comparison."""

from __future__ import annotations

import dataclasses
import importlib.util
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from exporter.checkpoint import Checkpoint, GraphSource, ModuleSource, Opened
from exporter.errors import Exit, OnnxGptError
from exporter.onnx_format.halves import has_halves
from exporter.onnx_format.reader import read_file
from graph_passes import run_pipeline
from onnx_gpt.bundle.targets import target
from onnx_gpt.bundle.writing import MODEL, save
from onnx_gpt.exporting import Exported, export
from onnx_gpt.parity.candidate import Candidate
from onnx_gpt.parity.gate import DEFAULT_LIMITS, ReferenceModel, compare
from onnx_gpt.parity.original import OriginalGraph
from onnx_gpt.parity.text import EvaluationTokens, evaluation_tokens
from onnx_gpt.progress import Progress
from onnx_gpt.recipe import Recipe
from onnx_gpt.report import Parity

WINDOW = 512
"""Tokens of a window of text, where the model's context holds as many."""
UNSTATED_WINDOW = 64
"""The same where nobody has stated the context, as of a user's module."""


def prove(opened: Opened, exported: Exported, model: Path, recipe: Recipe, progress: Progress) -> Parity:
    """Compare the written model with the reference, under the recipe's limits."""
    text = evaluation_text(opened, exported, recipe)
    with _reference(opened, exported, recipe, progress) as reference:
        return compare(
            Candidate(model),
            reference,
            text,
            scheme=recipe.gate,
            limits=recipe.limits or DEFAULT_LIMITS[recipe.gate],
            greedy_tokens=min(64, text.windows.shape[1] // 2),
            progress=lambda done, total: progress.advance(done, total, "windows of text"),
        )


def evaluation_text(opened: Opened, exported: Exported, recipe: Recipe) -> EvaluationTokens:
    """The tokens that a job is judged on."""
    return evaluation_tokens(
        opened.files.get("tokenizer.json"),
        exported.vocab_size,
        tokens=recipe.tokens,
        window=min(WINDOW, exported.context_length or UNSTATED_WINDOW),
        path=recipe.text,
    )


@contextmanager
def _reference(
    opened: Opened, exported: Exported, recipe: Recipe, progress: Progress
) -> Iterator[ReferenceModel]:
    """PyTorch in float32; where it is not installed, our own float bundle stands in for a quantized one.

    A foreign graph's reference is the graph itself, as its exporter left it.
    """
    if isinstance(opened, GraphSource):
        with _original(opened, progress) as original:
            yield original
        return
    if all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        from exporter.reference import Reference

        yield Reference(opened if isinstance(opened, Checkpoint) else exported.module)
        return
    if recipe.quantize == "none" or isinstance(opened, ModuleSource):
        raise OnnxGptError(
            "reference-missing",
            "parity of a float bundle needs torch and transformers, which are not installed",
            "pip install 'onnx-gpt[reference]', or pass --no-parity",
            exit=Exit.ENVIRONMENT,
        )
    with tempfile.TemporaryDirectory(prefix="onnx-gpt-float-") as folder:
        float_model = export(opened, recipe.context_length).model
        run_pipeline(float_model, target("ort").PIPELINE)
        save(float_model, Path(folder), progress)
        yield FloatBundle(Candidate(Path(folder) / MODEL))


@contextmanager
def _original(opened: GraphSource, progress: Progress) -> Iterator[OriginalGraph]:
    """The file's graph; one in half precision is run in float32, where its own rounding is not in the way."""
    model = read_file(opened.path)
    if not has_halves(model):
        yield OriginalGraph(opened.path, model, opened.path.name)
        return
    with tempfile.TemporaryDirectory(prefix="onnx-gpt-original-") as folder:
        model = opened.read()
        save(model, Path(folder), progress)
        yield OriginalGraph(Path(folder) / MODEL, model, f"{opened.path.name} in float32")


@dataclasses.dataclass(frozen=True)
class FloatBundle:
    """Our own float32 bundle in the reference's place."""

    candidate: Candidate
    name: str = "onnx-gpt float32 bundle (torch is not installed)"

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        return self.candidate.logits(tokens)

    def greedy(self, tokens: np.ndarray, count: int) -> list[int]:
        return self.candidate.greedy(tokens, count)


def require_passed(parity: Parity | None) -> None:
    if parity is not None and parity.verdict == "fail":
        raise OnnxGptError(
            "parity-failed",
            f"the bundle is not near enough to {parity.reference}; nothing was published",
            "choose a gentler scheme, or state other limits with --max-kl, --min-top1, --max-perplexity-ratio",
            exit=Exit.PARITY,
            details=parity.failures,
        )
