"""Three proofs of a graph that no budget blurs: its weights and its codes by value, all else by its float twin.

They need the source's weights by the candidate's roles, so the candidate has to be a graph of ours and the reference a
source that roles are known of.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from exporter.checkpoint import Checkpoint, ModuleSource, Opened
from exporter.emitter import ROLE
from exporter.errors import OnnxGptError
from exporter.onnx_format.reader import read_file
from exporter.weights import Weight
from onnx_gpt.bundle.writing import MODEL, save
from onnx_gpt.certificate.tracing import Expected, trace
from onnx_gpt.certificate.tracing.channels import ROTATED
from onnx_gpt.certificate.tracing.comparing import tolerance_of
from onnx_gpt.certificate.tracing.expected import stacked
from onnx_gpt.certificate.tracing.files import expected_in
from onnx_gpt.parity.candidate import Candidate
from onnx_gpt.parity.cases import Model, Trial
from onnx_gpt.parity.checks import LENGTH, run_checks
from onnx_gpt.parity.coded import Coded, coded_nodes
from onnx_gpt.parity.gate import Facts
from onnx_gpt.parity.noise import FACTOR, WORST_FACTOR, deviation, row_differences
from onnx_gpt.parity.told import Told, told_beside
from onnx_gpt.parity.twin import make_twin
from onnx_gpt.parity.values import TIMES, furthest
from onnx_gpt.progress import Progress
from onnx_gpt.report import Check, Noise

NAMED = 8
"""Weights that a check names, at most."""
LARGEST = 3 << 30
"""Bytes of a float twin that is written to be run; that of a larger model is not run."""

CHECKS = ("weights", "codes", "float_twin")
NO_REPORT = "no report beside the graph says how its channels were turned or scaled"


@dataclasses.dataclass(frozen=True)
class Known:
    """What a graph of ours should hold.

    Attributes:
        told: how it was made.
        coded: its codes; a reason where they are kept in ways that are not read.
        weights: what they were made of, by role, ``[N, K]``.
    """

    told: Told
    expected: Expected
    coded: list[Coded]
    weights: Mapping[str, Weight]


@dataclasses.dataclass(frozen=True)
class Standing:
    """What a float twin is held against, and how.

    Attributes:
        windows: of text, tokens ``[N, S]``; the first is run.
        noise: gives the reference's own; asked only where the twin is run.
        memory: bytes that the cache of a case may take.
        skip: cases that are not to be run.
    """

    reference: Model
    facts: Facts
    windows: np.ndarray
    noise: Callable[[], Noise]
    memory: int
    skip: Collection[str]


def structure_checks(
    path: Path, scheme: str, source: Opened, against: Standing, progress: Progress
) -> dict[str, Check]:
    """The checks of `CHECKS`; not run, with the reason, where the source says nothing of the roles.

    Args:
        path: the candidate's graph.
        scheme: that it is judged as: a float one is its own twin, and only its weights are looked at.
        source: what the reference was opened from.
        against: for the twin.
    """
    model = read_file(path)
    wanted = CHECKS[:1] if scheme == "none" else CHECKS
    known = _known(path, model, scheme, source)
    if isinstance(known, str):
        return dict.fromkeys(wanted, Check(verdict="not run", detail=known))
    progress.advance(0, 1, "weights")
    checks = {"weights": _weights_check(model, known, source)}
    if scheme == "none":
        return checks
    progress.advance(0, 1, "codes")
    checks["codes"] = _codes_check(known)
    size = sum(4 * int(np.prod(weight.shape)) for weight in known.expected.weights.values())
    if size > LARGEST:
        reason = f"the twin takes {size >> 20} MB, more than {LARGEST >> 20}"
        return checks | {"float_twin": Check(verdict="not run", detail=reason)}
    make_twin(model, known.coded, known.weights, known.expected)
    with tempfile.TemporaryDirectory(prefix="onnx-gpt-twin-") as folder:
        progress.advance(0, 1, "writing the float twin")
        save(model, Path(folder), progress)
        twin = Candidate(Path(folder) / MODEL, name="float twin")
        progress.advance(0, 1, "the float twin")
        found = _twin_check(twin, against)
    return checks | {"float_twin": found}


def _weights_check(model: ir.Model, known: Known, source: Opened) -> Check:
    """Every weight against the source's, by value (`onnx_gpt.certificate.tracing`)."""
    if not isinstance(source, Checkpoint):
        return Check(verdict="not run", detail="the reference is a graph: no family describes its weights")
    found = trace(model, known.expected, tolerance_of(known.told.quantize, known.told.method))
    told = f"{len(found.exact)} as they are, {len(found.rounded)} rounded, {len(found.untraced)} not of the source's"
    return Check(verdict=found.verdict, detail="; ".join(found.failures[:NAMED]) or told)


def _codes_check(known: Known) -> Check:
    if not known.coded:
        return Check(verdict="not run", detail="no weight is kept as codes")
    worst = furthest(known.coded, known.weights, chosen=known.told.method == "gptq")
    return Check(
        verdict="pass" if worst.times <= TIMES else "fail",
        detail=worst.where,
        value=worst.times,
        limit=TIMES,
        unit="x rounding",
    )


def _twin_check(twin: Candidate, against: Standing) -> Check:
    """The twin on a text and in every case, as a float candidate is judged; the worst of all."""
    reference, facts, noise, window = against.reference, against.facts, against.noise(), against.windows[0]
    ours, theirs = twin.logits(window[None])[0], reference.logits(window[None])[0]
    found = deviation(row_differences(ours, theirs))
    trial = Trial(
        twin, reference, window[:LENGTH], ours.shape[-1], facts.context, facts.window, against.memory
    )
    cases = run_checks(trial, noise=noise, limit=0.0, far_limit=0.0, skip=against.skip)
    failed = [name for name, check in cases.items() if check.verdict == "fail"]
    values = {name: check.value / WORST_FACTOR for name, check in cases.items() if check.value is not None}
    values["text, in the mean"] = found.rms / noise.rms / FACTOR
    values["text, at the worst position"] = found.worst / noise.worst / WORST_FACTOR
    name, worst = max(values.items(), key=lambda entry: entry[1])
    told = f"worst in {name}" if not failed else f"worst in {name}; fails {', '.join(failed)}"
    return Check(
        verdict="fail" if failed or not worst <= 1 else "pass",
        detail=f"{told} (a text of {len(window)} tokens and {len(values) - 2} cases)",
        value=worst * FACTOR,
        limit=FACTOR,
        unit="x noise",
    )


def float_twin(path: Path, scheme: str, source: Opened) -> ir.Model | None:
    """A lossy graph with the weights that it was made of; None where they are not known, or were turned or scaled.

    Args:
        path, scheme, source: as of `structure_checks`.
    """
    model = read_file(path)
    known = _known(path, model, scheme, source) if scheme != "none" else ""
    if isinstance(known, str) or known.told.quantize in ROTATED or known.told.method == "awq":
        return None
    make_twin(model, known.coded, known.weights, known.expected)
    return model


def _known(path: Path, model: ir.Model, scheme: str, source: Opened) -> Known | str:
    """What the graph should hold, or why that is not known."""
    if isinstance(source, ModuleSource):
        return "the reference is a module, whose graph is not exported again"
    if not any(ROLE in node.metadata_props for node in model.graph):
        return "the candidate's nodes carry no roles, by which weights are found"
    told = told_beside(path)
    if told is None and scheme == "w8a8":
        return NO_REPORT
    told = told or Told("")
    coded = coded_nodes(model.graph)
    if isinstance(coded, str):
        return coded
    try:
        expected = expected_in(model, source, told.quantize, told.method, told.context_length)
    except OnnxGptError as error:
        return f"the reference's weights have no roles: {error.cause}"
    found = {one.role: expected.parts(one.role, "weight") for one in coded}
    missing = [role for role, parts in found.items() if not parts]
    if missing:
        return f"the reference has no weight with the role {missing[0]!r}"
    weights = {role: stacked(parts) for role, parts in found.items()}
    rows: dict[tuple[str, str], int] = {}
    for one in coded:
        rows[one.kind, one.role] = rows.get((one.kind, one.role), 0) + one.shape[0]
        if not weights[one.role].shape[1] <= one.shape[1]:
            return f"{one.role} has {one.shape[1]} columns, the reference's {weights[one.role].shape[1]}"
    for (_, role), count in rows.items():
        if weights[role].shape[0] != count:
            return f"{role} has {count} rows in the candidate and {weights[role].shape[0]} in the reference"
    return Known(told, expected, coded, weights)
