"""The distillation job: a student trained on what a teacher says of a text, measured on text that neither has seen.

The result is an ordinary checkpoint, or a variant where the student was one. What a killed run leaves lies beside OUT
and is taken up by the same command; what a teacher said stays in the user's cache, for the next student.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from calibration.data.windows import Windows, require_apart
from exporter import sources
from exporter.checkpoint import Checkpoint
from exporter.errors import Exit, OnnxGptError, rejected
from exporter.sources.sample import cache_folder
from exporter.variants import variant_of
from exporter.weights import Array
from exporter.writing import nbytes, stored_weights, write_checkpoint
from onnx_gpt._version import __version__
from onnx_gpt.bundle.staging import kept_folder, only_run, require_absent, require_space, scratch, staged
from onnx_gpt.bundle.writing import REPORT
from onnx_gpt.distilling.pair import Model, on_grid, open_pair
from onnx_gpt.distilling.recipe import DistillRecipe
from onnx_gpt.distilling.report import DistillReport
from onnx_gpt.distilling.student import HELD_OUT, Task, Trained, trained
from onnx_gpt.exporting import export
from onnx_gpt.optimizing.calibrating import calibration_windows
from onnx_gpt.progress import Progress, Silent
from onnx_gpt.pruning.perplexity import Score, score, windows_of
from onnx_gpt.pruning.report import counts_of, side
from onnx_gpt.report import Stages

FITTED_TO = 128
"""Windows that other commands draw, at most."""


def distill(
    student: str,
    out: str | Path,
    *,
    teacher: str,
    work: Path | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> DistillReport:
    """Train a student on what a teacher says.

    Args:
        student: a checkpoint, as `exporter.sources.load` takes it; or a directory with a ``config.json`` and no
            weights, which is trained from random ones.
        out: directory to make; it appears whole, or not at all.
        teacher: a checkpoint that reads text as the same tokens.
        work: folder that what teachers said is kept in; one in the user's cache by default.
        progress: told what happens.
        settings: those of `DistillRecipe`.

    Returns:
        What ``report.json`` of the result says.

    Raises:
        OnnxGptError: ``distill-invalid`` (exit 2), ``distill-needs-checkpoint``, ``distill-hidden`` (exit 3),
            ``distill-tokenizers``, ``vocabulary-differs``, ``distill-other-run`` where a run with other settings was
            killed, ``training-diverged``, those of calibration text, ``reference-missing`` (exit 8) without torch,
            ``output-exists`` and ``output-busy`` (exit 10).
    """
    return run(student, teacher, Path(out), DistillRecipe(**settings), progress or Silent(), work=work)


def run(
    student: str,
    teacher: str,
    out: Path,
    recipe: DistillRecipe,
    progress: Progress,
    *,
    work: Path | None = None,
) -> DistillReport:
    """`distill` with its settings as one value."""
    require_absent(out)
    _require_torch()
    stages = Stages(progress.stage)
    with scratch(out) as folder:
        folder.mkdir(parents=True)
        with stages.stage("load"):
            learns, teaches = open_pair(student, teacher, recipe)
            if recipe.scheme is not None:
                learns = on_grid(learns, recipe.scheme)
        context = learns.decoder.context_length
        held_out, origin = windows_of(teaches.opened, recipe.tokens, recipe.text)
        held_out = held_out[:, :context]
        windows = _text(teaches, context, recipe)
        require_apart(windows.tokens, held_out)
        task = Task(learns, teaches, windows.tokens, recipe, stages, progress)

        def measured(checkpoint: Checkpoint, name: str) -> Score:
            with stages.stage(name):
                return score(checkpoint, held_out, origin, folder / name, progress)

        dtype = learns.dtype
        with _states(out) as states:
            made = trained(task, states, kept_folder(work or cache_folder() / "teachers"))
            checkpoint = _checkpoint(learns, made)
            require_space(out, nbytes(checkpoint, dtype))
            with staged(out) as stage:
                with stages.stage("write"):
                    write_checkpoint(stage, checkpoint, dtype=dtype)
                written = sources.load(str(stage))
                assert isinstance(written, Checkpoint)
                taught = measured(teaches.opened, "teacher")
                before = measured(learns.opened, "before") if learns.trained else None
                after = measured(written, "after")
                report = DistillReport(
                    version=__version__,
                    source=student,
                    family=learns.decoder.family,
                    recipe=recipe.echo(made.rate),
                    stages=tuple(stages.done),
                    teacher=made.teacher(teacher, taught.perplexity),
                    calibration=windows.facts(),
                    text=origin,
                    training=made.training,
                    after=side(counts_of(written, dtype), dtype, after),
                    quantized=recipe.quantize,
                    variant=variant_of(checkpoint.config) is not None,
                    **({} if before is None else _against(learns, before, after, taught)),
                )
                (stage / REPORT).write_text(report.json_text(), "utf-8", newline="\n")
    return report


def states_beside(out: Path) -> Path:
    """Where a run keeps what it takes to go on after it was killed."""
    return out.absolute().parent / f".{out.name}.distill"


@contextmanager
def _states(out: Path) -> Iterator[Path]:
    """A folder for this run's states. It goes with a block that ends well, or before there are any."""
    folder = states_beside(out)
    with only_run(out, folder):
        done = False
        try:
            yield folder
            done = True
        finally:
            if done or not any(folder.glob("step-*")):
                shutil.rmtree(folder, ignore_errors=True)


def _text(teaches: Model, context: int, recipe: DistillRecipe) -> Windows:
    """The text to train on, no more of it than the steps read; its first windows are held out.

    The last windows that are drawn of it, where it has enough: pruning and GPTQ draw the first ones of the same, and a
    student that was fitted to some is too good on these to say how far it is from its teacher.
    """
    count = HELD_OUT + recipe.steps * recipe.batch
    found = calibration_windows(teaches.opened, export(teaches.opened), recipe.data, count + FITTED_TO)
    if len(found.tokens) < 2:
        raise rejected(
            "calibration-too-short", "the text is one window", "give more text: some 100,000 tokens"
        )
    origin = found.origin if recipe.data else "pydoc_data.topics, first four fifths"
    tokens = np.ascontiguousarray(found.tokens[::-1][:count, :context])
    return dataclasses.replace(found, tokens=tokens, origin=origin)


def _checkpoint(learns: Model, made: Trained) -> Checkpoint:
    weights = {role: Array(array) for role, array in made.weights.items()}
    return dataclasses.replace(learns.opened, weights=stored_weights(learns.decoder, weights))


def _against(learns: Model, before: Score, after: Score, taught: Score) -> dict[str, Any]:
    """What a report says of a student that had been trained before."""
    lost, left = (math.log(score.perplexity / taught.perplexity) for score in (before, after))
    return {
        "before": side(counts_of(learns.opened, learns.dtype), learns.dtype, before),
        "perplexity_ratio": after.perplexity / before.perplexity,
        "recovered": (lost - left) / lost if lost > 0 else None,
    }


def _require_torch() -> None:
    if importlib.util.find_spec("torch") is None:
        raise OnnxGptError(
            "reference-missing",
            "distillation trains with torch, which is not installed",
            "pip install 'onnx-gpt[reference]'",
            exit=Exit.ENVIRONMENT,
        )
