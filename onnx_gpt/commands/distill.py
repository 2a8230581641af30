"""``onnx-gpt distill``: a student trained on what a teacher says, with the gain measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from onnx_gpt.commands._show import echo, print_table, progress_bar
from onnx_gpt.distilling.job import run
from onnx_gpt.distilling.recipe import DistillRecipe
from onnx_gpt.distilling.report import DistillReport
from onnx_gpt.pruning.report import Side


def distill(
    student: str,
    /,
    *,
    teacher: str,
    out: Annotated[Path, Parameter(name=["--out", "-o"])],
    data: Path | None = None,
    steps: int = 200,
    batch: int = 4,
    rate: float | None = None,
    mix: float = 0.0,
    temperature: float = 1.0,
    hidden: float = 0.0,
    quantize: Literal["int4", "int8"] | None = None,
    seed: int = 0,
    text: Path | None = None,
    tokens: int = 2048,
    json: Annotated[bool, Parameter(negative="")] = False,
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
    out
        Directory to make. It must not exist.
    data
        Text to train on: .txt, .jsonl, .parquet, .npy, a folder. Python's documentation by default.
    steps
        Steps at most; training ends when the loss on held-out windows keeps rising.
    batch
        Windows of text in a step, 512 tokens each where the context holds as many.
    rate
        Largest learning rate. A measured one by default.
    mix
        Share of the cross-entropy with the text itself, 0 to 1; 1 is training without a teacher.
    temperature
        That both distributions are taken at.
    hidden
        Weight of the distance between the hidden states behind the last layers.
    quantize
        int4 or int8: keep the codes that rounding gives the student, and train scales of blocks, norms and biases. The
        result's weights lie on that grid: optimize it with the same --quantize.
    seed
        Of an untrained student's weights and of the order of the text.
    text
        UTF-8 file to measure perplexity on; held-out English of Python's own documentation by default.
    tokens
        Tokens to measure it on, at least.
    json
        Print the report as JSON.
    """
    recipe = DistillRecipe(data, steps, batch, rate, mix, temperature, hidden, quantize, seed, text, tokens)
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
