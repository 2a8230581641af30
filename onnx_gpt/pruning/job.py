"""The pruning job: checkpoint → statistics on text → a smaller checkpoint, its damage measured on text held out.

The result is an ordinary checkpoint of its family where the family can describe it, else a variant
(`exporter.variants`).
"""

from __future__ import annotations

import collections
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from calibration.data.windows import Windows, require_apart
from calibration.pruning.model import Described
from exporter import sources
from exporter.checkpoint import Checkpoint
from exporter.errors import unsupported
from exporter.families import describe
from exporter.match import matched
from exporter.variants import variant_of
from exporter.writing import dtype_of, nbytes, write_checkpoint
from onnx_gpt._version import __version__
from onnx_gpt.bundle.staging import require_absent, require_space, scratch, staged
from onnx_gpt.bundle.writing import REPORT
from onnx_gpt.exporting import export
from onnx_gpt.optimizing.calibrating import calibration_windows
from onnx_gpt.progress import Progress, Silent
from onnx_gpt.pruning.perplexity import Score, score, windows_of
from onnx_gpt.pruning.recipe import PruneRecipe
from onnx_gpt.pruning.report import Counted, PruneReport, counts_of, side
from onnx_gpt.pruning.structures import without_structures
from onnx_gpt.pruning.task import Pruned, Task
from onnx_gpt.pruning.zeros import with_zeros
from onnx_gpt.report import Stages


def prune(
    source: str,
    out: str | Path,
    *,
    progress: Progress | None = None,
    **settings: Any,
) -> PruneReport:
    """Make a checkpoint smaller, or sparser.

    Args:
        source: a checkpoint, as `exporter.sources.load` takes it.
        out: directory to make; it appears whole, or not at all.
        progress: told what happens.
        settings: those of `PruneRecipe`.

    Returns:
        What ``report.json`` of the result says.

    Raises:
        OnnxGptError: ``prune-invalid`` (exit 2), ``prune-needs-checkpoint``, ``variant-impossible`` (exit 3), those
            of calibration text, and ``output-exists`` (exit 10).
    """
    return run(source, Path(out), PruneRecipe(**settings), progress or Silent())


def run(source: str, out: Path, recipe: PruneRecipe, progress: Progress) -> PruneReport:
    """`prune` with its settings as one value."""
    require_absent(out)
    stages = Stages(progress.stage)
    with scratch(out) as folder:
        folder.mkdir(parents=True)
        with stages.stage("load"):
            opened = _checkpoint(source)
            described = Described(*matched(opened))
            dtype = dtype_of(opened.weights.values())
        held_out, origin = windows_of(opened, recipe.tokens, recipe.text)
        calibration = _calibration(opened, recipe)
        if calibration is not None:
            require_apart(calibration.tokens, held_out)
        with stages.stage("before"):
            before = score(opened, held_out, origin, folder / "before", progress)
            size_before = counts_of(opened, dtype)
        tokens = None if calibration is None else calibration.tokens
        task = Task(opened, described, recipe, tokens, folder, stages, progress)
        made = with_zeros(task) if recipe.structured is None else without_structures(task)
        require_space(out, nbytes(made.checkpoint, dtype))
        with staged(out) as stage:
            with stages.stage("write"):
                write_checkpoint(stage, made.checkpoint, dtype=dtype)
            with stages.stage("after"):
                written = _checkpoint(str(stage))
                after = _score_after(written, recipe, (held_out, origin), made, folder / "after", progress)
                size_after = counts_of(written, dtype)
            report = PruneReport(
                version=__version__,
                source=source,
                family=described.decoder.family,
                recipe=recipe.echo(),
                stages=tuple(stages.done),
                calibration={} if calibration is None else calibration.facts(),
                text=origin,
                before=side(size_before, dtype, before),
                after=side(size_after, dtype, after),
                perplexity_ratio=after.perplexity / before.perplexity,
                sparsity=_zeros(written, size_after),
                variant=variant_of(written.config) is not None,
                **made.facts,
            )
            (stage / REPORT).write_text(report.json_text(), "utf-8", newline="\n")
    return report


def _zeros(written: Checkpoint, counts: Mapping[str, Counted]) -> dict[str, float]:
    """The share of zeros by kind of linear map, over all layers."""
    zeros: collections.Counter[str] = collections.Counter()
    elements: collections.Counter[str] = collections.Counter()
    for role, part in describe(written).parts():
        if role.startswith("layers.") and len(part.shape) == 2:
            kind = role.split(".", 2)[2].removesuffix(".weight")
            zeros[kind] += counts[part.name].zeros
            elements[kind] += counts[part.name].elements
    return {kind: zeros[kind] / elements[kind] for kind in elements}


def _checkpoint(source: str) -> Checkpoint:
    opened = sources.load(source)
    if not isinstance(opened, Checkpoint):
        raise unsupported(
            "prune-needs-checkpoint",
            f"{source!r} is no checkpoint: only one whose decoder is known can be pruned",
            "give the checkpoint that the graph was exported from",
        )
    return opened


def _calibration(opened: Checkpoint, recipe: PruneRecipe) -> Windows | None:
    if not recipe.reads_text:
        return None
    return calibration_windows(opened, export(opened), recipe.calibration, recipe.windows)


def _score_after(
    written: Checkpoint,
    recipe: PruneRecipe,
    held_out: tuple[np.ndarray, str],
    made: Pruned,
    folder: Path,
    progress: Progress,
) -> Score:
    """On the same tokens; on the same text where the tokens are others."""
    if made.facts.get("vocabulary") is not None:
        held_out = windows_of(written, recipe.tokens, recipe.text)
    return score(written, *held_out, folder, progress)
