"""``onnx-gpt optimize``: the main job."""

from __future__ import annotations

from pathlib import Path

from onnx_gpt.commands._flags import Json, NewFolder, Work
from onnx_gpt.commands._settings import NONE, Settings
from onnx_gpt.commands._show import echo, progress_bar, show_report
from onnx_gpt.optimizing.pipeline import run
from onnx_gpt.recipe_file import SEARCHED, predicted_of, recipe_of

GRIDS = {"block_size", "table_bits", "mixed"}
"""Settings that a budget finds."""


def optimize(
    source: str,
    /,
    *,
    out: NewFolder,
    recipe: Path | None = None,
    budget: str | None = None,
    work: Work = None,
    settings: Settings = NONE,
    json: Json = False,
) -> int:
    """Turn a trained decoder into a fused, quantized bundle that is proven against PyTorch.

    Nothing is published where parity fails (exit status 5) or anything else goes wrong.

    Parameters
    ----------
    source
        Checkpoint directory, .gguf, .pt, .onnx, hf:org/name, module:package.module:factory, sample:tiny or :smollm2.
    recipe
        Settings from a .toml file, a bundle's recipe.toml say. Flags beside it go before its own.
    budget
        What the bundle may cost, "size=90MB", "kl=0.03", "decode=150" tokens a second on this machine, or several:
        the formats of all weights are searched for, and recipe.toml says which were found.
    """
    job = recipe_of(settings, recipe, defaults=None if budget is None else SEARCHED)
    changed = f", but for {', '.join(settings)}" if settings else ""
    origin = {"recipe": f"{recipe}{changed}"} if recipe is not None else {}
    told = job.echo()
    if budget is not None:
        told = {"budget": budget, **{name: value for name, value in told.items() if name not in GRIDS}}
    echo(f"optimize {source} → {out}", {**origin, **told})
    with progress_bar() as bar:
        expected = predicted_of(recipe) if budget is None else None
        report = run(source, out, job, bar, budget=budget, work=work, predicted=expected)
    if json:
        print(report.json_text(), end="")
    else:
        show_report(report, out)
    return 0
