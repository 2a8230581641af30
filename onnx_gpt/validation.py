"""A bundle against the model it was made from, at any later time."""

from __future__ import annotations

import json
from pathlib import Path

from exporter import sources
from exporter.errors import rejected
from onnx_gpt.bundle.writing import MODEL, REPORT
from onnx_gpt.exporting import export
from onnx_gpt.parity.gate import DEFAULT_LIMITS
from onnx_gpt.parity.prove import prove
from onnx_gpt.progress import Progress, Silent
from onnx_gpt.recipe import KV_CACHES, Recipe
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
    scheme, kv_cache = scheme_of_bundle(Path(bundle))
    recipe = Recipe(quantize=scheme, kv_cache=kv_cache, limits=limits, text=text, tokens=tokens)
    opened = sources.load(against)
    return prove(opened, export(opened), model, recipe, progress or Silent())


def scheme_of_bundle(bundle: Path) -> tuple[str, str]:
    """The scheme of weights and the type of cache that a bundle's report names; ``none``, ``float`` without one.

    Raises:
        OnnxGptError: ``bundle-invalid`` for a report that is none, or names no scheme of ours.
    """
    path = bundle / REPORT
    if not path.is_file():
        return "none", "float"
    try:
        recipe = json.loads(path.read_text("utf-8"))["recipe"]
        scheme, kv_cache = str(recipe["quantize"]), str(recipe.get("kv_cache", "float"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise rejected(
            "bundle-invalid", f"{path} is not a report: {error}", "build the bundle again"
        ) from error
    if scheme not in DEFAULT_LIMITS or kv_cache not in KV_CACHES:
        raise rejected(
            "bundle-invalid",
            f"{path} names a scheme {scheme!r} with a cache {kv_cache!r}",
            "build the bundle again",
        )
    return scheme, kv_cache
