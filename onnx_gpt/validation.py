"""A bundle against the model it was made from, at any later time."""

from __future__ import annotations

from pathlib import Path

from exporter import sources
from exporter.errors import rejected
from onnx_gpt.bundle.writing import MODEL, read_report
from onnx_gpt.exporting import export
from onnx_gpt.parity.gate import DEFAULT_LIMITS
from onnx_gpt.parity.prove import prove
from onnx_gpt.progress import Progress, Silent
from onnx_gpt.recipe import Recipe
from onnx_gpt.report import Limits, Parity


def validate(
    bundle: str | Path,
    against: str,
    *,
    limits: Limits | None = None,
    text: Path | None = None,
    tokens: int = 2048,
    progress: Progress | None = None,
) -> Parity:
    """Measure a bundle's parity with a source; the verdict is in the result.

    Args:
        bundle: a folder that holds ``model.onnx``.
        against: a source.
        limits: thresholds; those of the scheme that the bundle's report names by default.

    Raises:
        OnnxGptError: where either cannot be opened. A failed verdict is a result, not an error.
    """
    model = Path(bundle) / MODEL
    if not model.is_file():
        raise rejected("bundle-incomplete", f"{bundle} holds no {MODEL}", "give a folder that optimize made")
    scheme = str(read_report(Path(bundle)).get("recipe", {}).get("quantize", "none"))
    recipe = Recipe(quantize=scheme, limits=limits or DEFAULT_LIMITS[scheme], text=text, tokens=tokens)
    opened = sources.load(against)
    return prove(opened, export(opened), model, recipe, progress or Silent())
