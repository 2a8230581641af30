"""Where two models that should be one part, and how the error of a lossy one enters and grows, layer by layer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pydantic

from exporter.checkpoint import GraphSource, Opened
from exporter.emitter import ROLE
from graph_passes import run_pipeline
from graph_passes.proof.evaluate import CannotEvaluate
from graph_passes.proof.prove import FACTOR, FLOOR
from onnx_gpt.bisecting.aligning import aligned, layer_of
from onnx_gpt.bisecting.cases import Case, Feeding, length_for, require_graph, stretch_for
from onnx_gpt.bisecting.comparing import Distance, distances
from onnx_gpt.bisecting.drawing import heat_map
from onnx_gpt.bisecting.judging import EPSILON, Truth, deviations, largest_error, truth_of
from onnx_gpt.bisecting.running import as_written, run
from onnx_gpt.bundle.staging import require_absent, staged
from onnx_gpt.exporting import Exported, canonical_pipeline, export
from onnx_gpt.parity.sides import Side, open_side
from onnx_gpt.parity.structure import float_twin
from onnx_gpt.parity.text import evaluation_tokens
from onnx_gpt.progress import Progress, Silent
from onnx_gpt.report import Frozen

SCHEMA = "onnx-gpt/parting/1"
TOKENS = 64
"""Of the prompt on which distances are measured."""


class PointFacts(Frozen):
    """Where two models part first.

    Attributes:
        point: in the order of the data, ``layers.3.heads`` (docs/bisect.md lists them).
        layer: None outside of layers.
        value: its name in the candidate.
        error: largest difference, of the reference's largest value there.
        tolerance: what is noise there.
        case, call: in which.
    """

    point: str
    layer: int | None
    value: str
    error: float
    tolerance: float
    case: str
    call: int


class DistanceFacts(Frozen):
    """A row of the table; fields are those of `onnx_gpt.bisecting.comparing.Distance`, the point in two parts."""

    layer: int | None
    point: str
    enters: float
    grown: float
    cosine: float
    kl: float | None


class Parting(Frozen):
    """What `compare_layers` found.

    Attributes:
        candidate, reference: as given.
        tokens: of the longest row that was run.
        noise: the reference's own, of the largest logit; ``measured`` as of `onnx_gpt.bisecting.bisection.Bisection`.
        tolerance: of logits.
        cases: largest error of the candidate's logits in each case, of the largest logit; None where it does not run.
        first: where they part; None where they do not.
        twin: whether both of these are of the candidate's float twin (`onnx_gpt.parity.twin`) and not of itself.
        lossy: whether one of the two is quantized, and not its twin was run, so that they have to part somewhere.
        table: distances at every point on one prompt.
        folder: where files were written; None where none were asked for.
    """

    schema_: str = pydantic.Field(default=SCHEMA, alias="schema", serialization_alias="schema")
    candidate: str
    reference: str
    tokens: int
    noise: float
    measured: str
    tolerance: float
    cases: Mapping[str, float | None]
    first: PointFacts | None
    twin: bool = False
    lossy: bool
    table: tuple[DistanceFacts, ...]
    folder: str | None = None


def compare_layers(
    candidate: str,
    against: str,
    *,
    out: str | Path | None = None,
    text: Path | None = None,
    tokens: int = TOKENS,
    costs: bool = True,
    progress: Progress | None = None,
) -> Parting:
    """Compare two models of one decoder point by point.

    Args:
        candidate, against: each a source, a bundle's folder or an ``.onnx``; what is not canonical is made so.
        out: folder to make, for ``table.json`` and ``heat.svg``.
        text: UTF-8 file whose first tokens are run; Python's own documentation by default.
        tokens: of the prompt on which distances are measured.
        costs: measure what each block's error costs alone, in KL: a run of the reference for each.
        progress: told what happens.

    Raises:
        OnnxGptError: what opening raises; ``roles-missing`` (exit 3); ``bisect-needs-graph`` (exit 3) for a module;
            ``output-exists`` (exit 10).
    """
    if out is not None:
        require_absent(Path(out))
    progress = progress or Silent()
    progress.stage("load")
    sides = [open_side(uri) for uri in (candidate, against)]
    ours, exported = runnable(sides[0].opened).model, runnable(sides[1].opened)
    theirs = exported.model
    twin = _twin_of(sides[0], sides[1])
    exact = ours if twin is None else twin
    points = aligned(exact, theirs)  # refused before anything is run
    contexts = [side.facts.context for side in sides if side.facts.context is not None]
    context = min(contexts, default=None)
    tokenizer = sides[1].tokenizer or sides[0].tokenizer
    length = length_for(theirs, context)
    prompt = min(max(tokens, 2), context or tokens)

    def rows(count: int, size: int) -> np.ndarray:
        wanted = evaluation_tokens(
            tokenizer, exported.vocab_size, tokens=count * (size - 1), window=size, path=text, fewer=True
        )
        return np.resize(wanted.windows, (count, size))

    progress.stage("run")
    truth = truth_of(theirs, rows(2, length), stretch_for(theirs, context))
    tried = truth.cases
    found = {deviation.case: deviation for deviation in deviations(exact, truth, tried)}
    far = [case for case in tried if case.name in found and not found[case.name].error <= truth.tolerance]
    progress.stage("align")
    first = next(filter(None, (_first(exact, theirs, truth, case, points) for case in far)), None)
    progress.stage("compare")
    measured = distances(ours, theirs, rows(1, prompt), progress, costs=costs)
    result = Parting(
        schema=SCHEMA,
        candidate=candidate,
        reference=against,
        tokens=length,
        noise=truth.noise,
        measured=truth.arithmetic,
        tolerance=truth.tolerance,
        cases={name: d.error if math.isfinite(d.error) else None for name, d in found.items()},
        first=first,
        twin=twin is not None,
        lossy=twin is None and any(side.scheme != "none" for side in sides),
        table=tuple(map(_facts_of, measured)),
    )
    if out is not None:
        result = result.model_copy(update={"folder": str(out)})
        with staged(Path(out)) as stage:
            _write(result, stage)
    return result


def runnable(opened: Opened) -> Exported:
    """The graph of a side, its nodes with roles: a checkpoint's canonical one, a bundle's as it is, a foreign one made
    canonical.

    Raises:
        OnnxGptError: ``bisect-needs-graph`` (exit 3) for a module.
    """
    exported = export(require_graph(opened))
    model = exported.model
    if isinstance(opened, GraphSource) and not any(ROLE in node.metadata_props for node in model.graph):
        run_pipeline(model, canonical_pipeline(exported.context_length), verify=False)
    as_written(model)
    return exported


def _twin_of(candidate: Side, reference: Side) -> ir.Model | None:
    """A lossy bundle with the float weights of its source, which has to part from it no more than a float one has."""
    if not isinstance(candidate.opened, GraphSource) or reference.scheme != "none":
        return None
    twin = float_twin(candidate.opened.path, candidate.scheme, reference.opened)
    if twin is not None:
        as_written(twin)
    return twin


def _facts_of(distance: Distance) -> DistanceFacts:
    plain = dataclasses.asdict(distance)
    point = plain.pop("point")
    return DistanceFacts(layer=layer_of(point), point=point.rpartition(".")[2], **plain)


def _first(
    ours: ir.Model,
    theirs: ir.Model,
    truth: Truth,
    case: Case,
    points: Mapping[str, tuple[ir.Value, ir.Value]],
) -> PointFacts | None:
    """The first point at which a case's calls part, the caches of the reference given to both."""
    names = {point: (str(a.name), str(b.name)) for point, (a, b) in points.items()}
    feeding, other = Feeding(theirs), Feeding(ours)
    if not (feeding.takes(case) and other.takes(case)):
        return None
    past: dict[str, np.ndarray] = {}
    for call in range(len(case.calls)):
        feeds = feeding.feeds(case, truth.text, call, past)
        wanted = run(theirs, [feeds], [b for _, b in names.values()])[0]
        near = run(theirs, [feeds], [b for _, b in names.values()], arithmetic="moved")[0]
        try:
            found = run(ours, [other.feeds(case, truth.text, call, past)], [a for a, _ in names.values()])[0]
        except CannotEvaluate:
            found = {}
        real = case.mask(wanted["logits"].shape[1]).astype(np.bool_) if len(set(case.lengths)) > 1 else None
        for point, (a, b) in names.items():
            if a not in found or found[a].size != wanted[b].size:
                error, tolerance = math.inf, 0.0
            else:
                mine, right, moved = (
                    _real(array.reshape(wanted[b].shape), real) for array in (found[a], wanted[b], near[b])
                )
                error = largest_error(mine, right)
                tolerance = FACTOR * largest_error(moved, right) + FLOOR * EPSILON
            if not error <= tolerance:
                return PointFacts(
                    point=point,
                    layer=layer_of(point),
                    value=a,
                    error=min(error, 1e30),  # infinity is no JSON
                    tolerance=tolerance,
                    case=case.name,
                    call=call,
                )
        past = wanted
    return None


def _real(array: np.ndarray, real: np.ndarray | None) -> np.ndarray:
    """Rows of tokens that are not padding, where there is any."""
    return array if real is None or array.shape[:2] != real.shape else array[real]


def _write(result: Parting, folder: Path) -> None:
    (folder / "table.json").write_text(result.model_dump_json(indent=2, by_alias=True) + "\n", "utf-8")
    (folder / "heat.svg").write_text(heat_map(_cells(result.table), result.candidate), "utf-8")


def _cells(table: Sequence[DistanceFacts]) -> Iterator[tuple[str, str, float, float]]:
    for row in table:
        where = "" if row.layer is None else str(row.layer)
        yield where, row.point, row.enters, row.grown
