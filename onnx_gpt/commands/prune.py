"""``onnx-gpt prune``: a smaller or sparser checkpoint, with the damage measured."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx_gpt.commands._flags import Json, NewFolder
from onnx_gpt.commands._settings import NONE, flags_of, flattened
from onnx_gpt.commands._show import echo, print_table, progress_bar
from onnx_gpt.pruning.job import run
from onnx_gpt.pruning.recipe import PruneRecipe
from onnx_gpt.pruning.report import PruneReport, Side

PYTHON_ONLY = {"windows", "probe"}
"""Settings that are no flags: their defaults do."""


if TYPE_CHECKING:
    Settings = dict[str, Any]
else:
    kinds = typing.get_type_hints(PruneRecipe)
    Settings = flattened(
        "Settings", flags_of(PruneRecipe, {name: kinds[name] for name in kinds if name not in PYTHON_ONLY})
    )


def prune(source: str, /, *, out: NewFolder, settings: Settings = NONE, json: Json = False) -> int:
    """Make a checkpoint smaller: set single weights to zero, or take neurons, heads, channels, layers or tokens out.

    The result is a checkpoint that optimize takes. What is taken out makes it smaller and faster; zeros make a
    compressed download smaller and nothing else.

    Parameters
    ----------
    source
        Checkpoint directory, .gguf, .pt, hf:org/name, sample:tiny or sample:smollm2.
    """
    recipe = PruneRecipe(**settings)
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
