"""``onnx-gpt prune``: a smaller or sparser checkpoint, with the damage measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from onnx_gpt.commands._show import echo, print_table, progress_bar
from onnx_gpt.pruning.job import run
from onnx_gpt.pruning.recipe import PruneRecipe
from onnx_gpt.pruning.report import PruneReport, Side


def prune(
    source: str,
    /,
    *,
    out: Annotated[Path, Parameter(name=["--out", "-o"])],
    sparsity: float | None = None,
    pattern: str | None = None,
    structured: str | None = None,
    method: str | None = None,
    allocate: Literal["searched", "uniform"] | None = None,
    calibration: Path | None = None,
    text: Path | None = None,
    tokens: int = 2048,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Make a checkpoint smaller: set single weights to zero, or take neurons, heads, channels, layers or tokens out.

    The result is a checkpoint that optimize takes. What is taken out makes it smaller and faster; zeros make a
    compressed download smaller and nothing else.

    Parameters
    ----------
    source
        Checkpoint directory, .gguf, .pt, hf:org/name, sample:tiny or sample:smollm2.
    out
        Directory to make. It must not exist.
    sparsity
        Share of the weights inside layers that become zero, 0 to 1.
    pattern
        N:M keeps N of every M neighbouring weights: 2:4, 4:8.
    structured
        What to take out: ffn=SHARE (neurons), heads=SHARE (with what shares their keys), hidden=SHARE (channels of
        the residual stream), layers=NUMBER or SHARE, vocab=used (tokens that --calibration does not use go),
        separated by commas.
    method
        sparsegpt, wanda or magnitude for --sparsity, sparsegpt by default. fitted or, to compare, magnitude for
        --structured.
    allocate
        searched asks more of layers that can bear it; uniform as much of each. With uniform, the feed-forwards of a
        result are alike and any program can read it; otherwise it may be a variant that only onnx-gpt reads.
    calibration
        Text that scores are taken from: .txt, .jsonl, .parquet, .npy, a folder. Python's documentation by default.
    text
        UTF-8 file to measure perplexity on; held-out English of Python's own documentation by default.
    tokens
        Tokens to measure it on, at least.
    json
        Print the report as JSON.
    """
    recipe = PruneRecipe(method, sparsity, pattern, structured, allocate, calibration, text, tokens)
    echo(f"prune {source} → {out}", recipe.echo())
    with progress_bar() as bar:
        report = run(source, out, recipe, bar)
    if json:
        print(report.json_text(), end="")
    else:
        _show(report, out)
    return 0


def _show(report: PruneReport, out: Path) -> None:
    before, after = report.before, report.after
    rows = [
        (name, _figure(getter(before)), _figure(getter(after)))
        for name, getter in {
            "parameters": lambda side: side.size.parameters,
            "weights, MB": lambda side: side.size.nbytes / 1e6,
            "… compressed by zlib": lambda side: side.size.compressed / 1e6,
            "perplexity": lambda side: side.perplexity,
            "bits a byte": _bits,
        }.items()
    ]
    print_table((str(out), "before", "after"), rows)
    if any(report.sparsity.values()):
        print()
        print_table(("zeros", "share"), [(kind, f"{share:.3f}") for kind, share in report.sparsity.items()])
    print()
    print(f"perplexity × {report.perplexity_ratio:.3f} on {report.text}")
    for note in (*report.notes, *(["a variant: only onnx-gpt reads it"] if report.variant else [])):
        print(note)


def _bits(side: Side) -> float | None:
    return side.bits_per_byte


def _figure(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3f}"
