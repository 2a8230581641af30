"""``onnx-gpt distill``: a student trained on what a teacher says, with the gain measured."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx_gpt.commands._flags import Json, NewFolder
from onnx_gpt.commands._settings import NONE, flags_of, flattened
from onnx_gpt.commands._show import echo, print_table, progress_bar
from onnx_gpt.distilling.job import run
from onnx_gpt.distilling.recipe import DistillRecipe
from onnx_gpt.distilling.report import DistillReport
from onnx_gpt.pruning.report import Side

if TYPE_CHECKING:
    Settings = dict[str, Any]
else:
    Settings = flattened("Settings", flags_of(DistillRecipe, typing.get_type_hints(DistillRecipe)))


def distill(
    student: str,
    /,
    *,
    teacher: str,
    out: NewFolder,
    settings: Settings = NONE,
    json: Json = False,
) -> int:
    """Train a student on what a teacher says: heal a pruned checkpoint, or teach a small one from nothing.

    The result is a checkpoint that optimize takes. A run that was killed goes on when the same command is given again.

    Parameters
    ----------
    student
        Checkpoint directory, .gguf, .pt, hf:org/name, sample:tiny or sample:smollm2; or a directory with a config.json
        and no weights, which is trained from random ones.
    teacher
        Likewise, with weights: what the student was before it was pruned, or a larger model of the same tokenizer.
    """
    recipe = DistillRecipe(**settings)
    echo(f"distill {teacher} → {student} → {out}", recipe.echo())
    with progress_bar() as bar:
        report = run(student, teacher, out, recipe, bar)
    if json:
        print(report.json_text(), end="")
    else:
        _show(report, out)
    return 0


def _show(report: DistillReport, out: Path) -> None:
    training = report.training
    rows = [
        ("teacher", f"{report.teacher.parameters:,}", f"{report.teacher.perplexity:.3f}"),
        *([] if report.before is None else [("student", *_figures(report.before))]),
        (str(out), *_figures(report.after)),
    ]
    print_table(("", "parameters", "perplexity"), rows)
    print()
    print_table(
        ("step", "held-out loss"), [(str(point.step), f"{point.loss:.4f}") for point in training.curve]
    )
    print()
    print(f"step {training.best} of {training.steps} is the best; {training.tokens:,} tokens were trained on")
    if report.recovered is not None:
        print(f"{100 * report.recovered:.0f} % of the lost log perplexity is back, on {report.text}")
    if report.quantized is not None:
        print(f"its weights are codes: optimize it with --quantize {report.quantized}")
    if report.variant:
        print("a variant: only onnx-gpt reads it")


def _figures(side: Side) -> tuple[str, str]:
    return f"{side.size.parameters:,}", f"{side.perplexity:.3f}"
