"""Parity of a written model: which tokens, which reference, and the comparison."""

from __future__ import annotations

import dataclasses
import importlib.util
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from exporter.checkpoint import Checkpoint, ModuleSource
from exporter.errors import Exit, OnnxGptError
from graph_passes import run_pipeline
from onnx_gpt.bundle.targets import target
from onnx_gpt.bundle.writing import MODEL, save
from onnx_gpt.exporting import Exported, export
from onnx_gpt.parity.candidate import Candidate
from onnx_gpt.parity.gate import DEFAULT_LIMITS, ReferenceModel, compare
from onnx_gpt.parity.text import evaluation_tokens
from onnx_gpt.progress import Progress
from onnx_gpt.recipe import Recipe
from onnx_gpt.report import Parity

WINDOW = 512
"""Tokens of a window of text, where the model's context holds as many."""
MODULE_WINDOW = 128
"""The same for a user's module, whose context nobody has stated."""


def prove(
    opened: Checkpoint | ModuleSource, exported: Exported, model: Path, recipe: Recipe, progress: Progress
) -> Parity:
    """Compare the written model with the reference, under the recipe's limits."""
    known = exported.decoder.context_length if exported.decoder else MODULE_WINDOW
    window = min(WINDOW, recipe.context_length or known)
    text = evaluation_tokens(
        opened.files.get("tokenizer.json"),
        exported.vocab_size,
        tokens=recipe.tokens,
        window=window,
        path=recipe.text,
    )
    with _reference(opened, exported, recipe, progress) as reference:
        return compare(
            Candidate(model),
            reference,
            text,
            scheme=recipe.quantize,
            limits=recipe.limits or DEFAULT_LIMITS[recipe.quantize],
            greedy_tokens=min(64, window // 2),
            progress=lambda done, total: progress.advance(done, total, "windows of text"),
        )


@contextmanager
def _reference(
    opened: Checkpoint | ModuleSource, exported: Exported, recipe: Recipe, progress: Progress
) -> Iterator[ReferenceModel]:
    """PyTorch in float32; where it is not installed, our own float bundle stands in for a quantized one."""
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
