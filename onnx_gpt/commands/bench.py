"""``onnx-gpt bench``: how fast a bundle is on this machine."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from onnx_gpt.commands._flags import Json, Threads
from onnx_gpt.commands._show import echo, print_json, print_table
from onnx_gpt.generation.measuring import LENGTH, Spread
from onnx_gpt.generation.measuring import bench as measure
from onnx_gpt.planning.prediction import CONTEXT, Predicted
from onnx_gpt.recipe_file import FILE, predicted_of

DEFAULT = f"{LENGTH}, or what fits"


def bench(
    bundle: Path,
    /,
    *,
    prompt_tokens: int | None = None,
    new_tokens: int = 64,
    context: int | None = None,
    repeats: int = 5,
    threads: Threads = None,
    json: Json = False,
) -> int:
    """Measure loading, prefill and decode through the public Generator. Medians of several rounds.

    Parameters
    ----------
    bundle
        Folder that optimize or onnxruntime-genai's builder made.
    prompt_tokens
        Length of the prefill; 512, or what the model's context holds, by default.
    new_tokens
        Decode steps that are timed.
    context
        Tokens before the first of these steps; 512, or what is left of the model's context, by default.
    repeats
        Rounds.
    """
    recipe = bundle / FILE
    predicted = predicted_of(recipe) if recipe.is_file() else None
    told = {
        "prompt_tokens": prompt_tokens or DEFAULT,
        "new_tokens": new_tokens,
        "context": context or DEFAULT,
    }
    echo(f"bench {bundle}", {**told, "repeats": repeats, "threads": threads or "physical cores"})
    result = measure(
        bundle,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        context=context,
        repeats=repeats,
        threads=threads,
    )
    if json:
        print_json(dataclasses.asdict(result))
        return 0
    print_table(
        ("measure", "median", "min", "max"),
        [
            (f"prefill of {result.prompt_tokens}, tok/s", *_spread(result.prefill_tokens_per_second, 0)),
            (f"decode at context {result.context}, tok/s", *_spread(result.decode_tokens_per_second, 0)),
            ("first token, s", *_spread(result.first_token_seconds, 3)),
            ("load, s", f"{result.load_seconds:.2f}", "", ""),
            ("peak memory, MB", f"{result.peak_rss_bytes / 1e6:.0f}", "", ""),
        ],
    )
    if predicted is not None and (result.prompt_tokens, result.context) == (CONTEXT, CONTEXT):
        _show_expected(predicted)
    return 0


def _show_expected(predicted: Predicted) -> None:
    """What a plan expected of the bundle's speed."""
    for name, one in (("prefill", predicted.prompt), ("decode", predicted.decode)):
        if one is not None:
            print(f"{name}: {one.value:.0f} expected ({one.low:.0f}–{one.high:.0f}), {one.basis}")


def _spread(spread: Spread, digits: int) -> tuple[str, str, str]:
    return f"{spread.median:.{digits}f}", f"{spread.min:.{digits}f}", f"{spread.max:.{digits}f}"
