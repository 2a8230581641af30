"""The first pass that makes a decoder another function, the firing in it, and the smallest piece that shows it."""

from __future__ import annotations

import dataclasses
import functools
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pydantic

from calibration.quantization.tensors import Coder
from calibration.quantization.weight_only import Coders
from calibration.transforms.rotation import rotated
from exporter import sources
from exporter.checkpoint import Opened
from exporter.errors import Exit, OnnxGptError
from graph_passes import parse, run_pipeline
from onnx_gpt.bisecting import codes, repro
from onnx_gpt.bisecting.aligning import layer_of
from onnx_gpt.bisecting.cases import length_for, require_graph, stretch_for
from onnx_gpt.bisecting.judging import truth_of
from onnx_gpt.bisecting.searching import Culprit, Judged, Search, Stage, search
from onnx_gpt.bundle.staging import require_absent, staged
from onnx_gpt.bundle.targets import chosen
from onnx_gpt.certificate.source import source_digests
from onnx_gpt.exporting import Exported, export, pipeline_of
from onnx_gpt.optimizing.building import quantize as quantize_weights
from onnx_gpt.optimizing.codes import KeptCodes, choose_codes
from onnx_gpt.optimizing.static_int8 import quantize_statically
from onnx_gpt.parity.text import evaluation_tokens
from onnx_gpt.progress import Progress, Silent
from onnx_gpt.recipe import Recipe
from onnx_gpt.report import Frozen

SCHEMA = "onnx-gpt/bisection/1"
CODED = ("int8", "int4", "w8a8", "keep")
"""Schemes that are judged."""
ROWS = 2
"""Rows of text that graphs are run on."""


class StageFacts(Frozen):
    """One stage of a pipeline.

    Attributes:
        name: of the pass; ``source`` is the graph that it starts from, ``quantize`` and ``static`` are lossy.
        verdict: ``right``; ``wrong``; ``not judged`` where what comes after is right, or what comes before wrong.
        error: largest |Δlogit| over all cases, of the largest logit; None of a lossy stage, whose weights are judged
            one by one, of one that was not judged, and of one that gives no such logits.
        case: in which that is.
        firings: replacements that the pass made.
        why: what went wrong, where that is no number.
    """

    name: str
    verdict: str
    error: float | None = None
    case: str = ""
    firings: int = 0
    why: str = ""


class PieceFacts(Frozen):
    """The smallest piece that is wrong.

    Attributes:
        stage: that left it.
        place: role of what makes its values, ``layers.3.attention.heads``.
        layer: that it is in; None outside of layers.
        values: names of what it gives.
        why: how they differ.
        case: in which.
        firing: number and place of the replacement that left it; empty where the pass changed it in another way.
        explains: whether its values alone make the outputs right again (``alone``), only with all other wrong pieces'
            (``together``), or ``no``.
        others: places of further pieces that differ.
        before, after: the piece on both sides, a node a line.
    """

    stage: str
    place: str
    layer: int | None
    values: tuple[str, ...]
    why: str
    case: str
    firing: str
    explains: str
    others: tuple[str, ...]
    before: tuple[str, ...]
    after: tuple[str, ...]


class Bisection(Frozen):
    """What `bisect` found.

    Attributes:
        source: as given.
        pipeline: the passes, as text.
        tokens: of the longest row that was run.
        noise: largest error of the source's own graph in float32, of the largest logit.
        tolerance: what counts as wrong lies above it.
        measured: what the noise is measured against: ``float64``, or ``moved``, weights that are an ulp off.
        stages: in order.
        found: the piece; None where every stage is right, or no piece by itself is wrong.
        repro: folder that shows it; None where none was asked for.
    """

    schema_: str = pydantic.Field(default=SCHEMA, alias="schema", serialization_alias="schema")
    source: str
    pipeline: str
    tokens: int
    noise: float
    tolerance: float
    measured: str
    stages: tuple[StageFacts, ...]
    found: PieceFacts | None = None
    repro: str | None = None

    @property
    def wrong(self) -> StageFacts | None:
        """The first stage that is wrong."""
        return next((stage for stage in self.stages if stage.verdict == "wrong"), None)


def bisect(
    source: str,
    *,
    out: str | Path | None = None,
    passes: str | None = None,
    target: str = "ort",
    quantize: str = "none",
    calibration: Path | None = None,
    context_length: int | None = None,
    text: Path | None = None,
    progress: Progress | None = None,
) -> Bisection:
    """Run the passes of a job one at a time and find the first after which the decoder gives something else.

    Args:
        source: what `exporter.sources.load` takes, but no module.
        out: folder to make for the smallest wrong piece: both sides, inputs, a script; made only where one is found.
        passes, target, quantize, calibration, context_length: as of `optimize`; of schemes those in `CODED`.
        text: UTF-8 file whose first tokens are run; Python's own documentation by default.
        progress: told what happens.

    Raises:
        OnnxGptError: what loading, exporting, passes and quantization raise; ``output-exists`` (exit 10).
    """
    if out is not None:
        require_absent(Path(out))
    progress = progress or Silent()
    progress.stage("load")
    recipe = Recipe(
        quantize=quantize,
        passes=passes,
        targets=(target,),
        calibration=calibration,
        context_length=context_length,
        parity=False,
        verify=False,
    )
    _require_judged(recipe.quantize)
    opened = require_graph(sources.load(source))
    with tempfile.TemporaryDirectory(prefix="onnx-gpt-bisect-") as folder:
        exported = export(opened, context_length, transform=rotated if recipe.is_static else None)
        pipeline = pipeline_of(exported, passes, chosen(target).models[0].pipeline)
        rows = _rows(opened, exported, text)
        original = export(opened, context_length).model if recipe.is_static else exported.model
        truth = truth_of(original, rows, stretch_for(original, exported.context_length))
        stages = _stages(opened, exported, pipeline, recipe, Path(folder), progress)
        found = search(exported.model, stages, truth, progress.stage)
        result = facts_of(found, [stage.name for stage in stages], source, pipeline)
        if out is not None and found.culprit is not None:
            assert result.found is not None
            wrong, tolerance = found.culprit.wrong, truth.tolerance
            if codes.is_coded(wrong.piece):  # there the sides differ by rounding, whatever the codes are
                values, tolerance = codes.exhibit(wrong.piece)
                wrong = dataclasses.replace(wrong, values=values)
            with staged(Path(out)) as stage:
                repro.write(wrong, stage, result.found.model_dump(), tolerance)
            result = result.model_copy(update={"repro": str(out)})
    return result


def _require_judged(quantize: str) -> None:
    if quantize not in (*CODED, "none"):
        raise OnnxGptError(
            "scheme-invalid",
            f"what {quantize} does to values is no rounding of single weights, which is what bisect judges",
            f"use one of none, {', '.join(CODED)}",
            exit=Exit.USAGE,
        )


def _rows(opened: Opened, exported: Exported, text: Path | None) -> np.ndarray:
    length = length_for(exported.model, exported.context_length)
    tokenizer = opened.files.get("tokenizer.json")
    tokens = evaluation_tokens(
        tokenizer, exported.vocab_size, tokens=ROWS * (length - 1), window=length, path=text, fewer=True
    )
    return np.resize(tokens.windows, (ROWS, length))


def _stages(
    opened: Opened, exported: Exported, pipeline: str, recipe: Recipe, folder: Path, progress: Progress
) -> list[Stage]:
    """Passes one at a time, then what quantization does."""

    def of(name: str) -> Stage:
        (step,) = parse(name)
        return Stage(step.name, lambda model: run_pipeline(model, [step], verify=False))

    stages = [of(str(step)) for step in parse(pipeline)]
    coders: dict[str, Sequence[Coder | None]] = {}
    kept = KeptCodes(folder / "codes", functools.partial(source_digests, opened))
    if recipe.is_static:

        def static(model: ir.Model) -> None:
            _, found, _ = quantize_statically(opened, exported, recipe, (), kept, progress)
            coders.update(found)

        stages.append(Stage("static", static, lossy=True))
    if recipe.quantize != "none":

        def code(model: ir.Model) -> None:
            chosen: Coders = coders
            if recipe.chooses_codes:
                chosen, _ = choose_codes(opened, exported, recipe, kept, progress)
            quantize_weights(exported, recipe, chosen)

        stages.append(Stage("quantize", code, lossy=True))
    return stages


def facts_of(found: Search, names: list[str], source: str, pipeline: str) -> Bisection:
    """The result for people and programs.

    Args:
        names: of all stages.
    """
    judged = [_stage_facts(stage) for stage in found.stages]
    left = [StageFacts(name=name, verdict="not judged") for name in names[len(judged) - 1 :]]
    wrong = found.wrong
    return Bisection(
        schema=SCHEMA,
        source=source,
        pipeline=pipeline,
        tokens=int(found.truth.text.shape[1]),
        noise=found.truth.noise,
        tolerance=found.truth.tolerance,
        measured=found.truth.arithmetic,
        stages=(*judged, *left),
        found=_piece_facts(wrong, found.culprit) if wrong and found.culprit else None,
    )


def _stage_facts(stage: Judged) -> StageFacts:
    worst = stage.worst
    known: dict[str, Any] = {}
    if worst is not None:
        known = {"case": worst.case, "why": worst.why}
        known["error"] = worst.error if math.isfinite(worst.error) else None
    verdict = "wrong" if stage.wrong else "right" if stage.judged else "not judged"
    return StageFacts(name=stage.name, verdict=verdict, firings=len(stage.firings), **known)


def _piece_facts(stage: Judged, culprit: Culprit) -> PieceFacts:
    piece, firing = culprit.wrong.piece, culprit.firing
    return PieceFacts(
        stage=stage.name,
        place=piece.place,
        layer=layer_of(piece.place),
        values=piece.names,
        why=culprit.wrong.why,
        case=culprit.case,
        firing="" if firing is None else f"{firing.number} of {len(stage.firings)}, at {firing.place}",
        explains=culprit.explains,
        others=culprit.others,
        before=tuple(str(piece.before).split("; ")),
        after=tuple(str(piece.after).split("; ")),
    )
