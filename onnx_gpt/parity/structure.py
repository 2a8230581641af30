"""Two proofs of a quantized graph that no budget blurs: its codes by value, and everything else by its float twin.

Both need the source's weights by the candidate's roles. They come from exporting the source again through the
candidate's own passes, unread; so the candidate has to be a graph of ours and the reference a source that is exported.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from calibration.quantization.sites import site_of
from exporter.checkpoint import ModuleSource, Opened
from exporter.errors import OnnxGptError
from exporter.onnx_format.reader import read_file
from exporter.weights import Weight
from graph_passes import ORT_PIPELINE, run_pipeline
from onnx_gpt.bundle.writing import MODEL, REPORT, save
from onnx_gpt.exporting import export
from onnx_gpt.parity.candidate import Candidate
from onnx_gpt.parity.cases import Model, Trial
from onnx_gpt.parity.checks import LENGTH, run_checks
from onnx_gpt.parity.coded import Coded, coded_nodes
from onnx_gpt.parity.gate import Facts
from onnx_gpt.parity.noise import FACTOR, WORST_FACTOR, deviation, row_differences
from onnx_gpt.parity.twin import make_twin
from onnx_gpt.parity.values import TIMES, furthest
from onnx_gpt.progress import Progress
from onnx_gpt.report import Check, Noise

LARGEST = 3 << 30
"""Bytes of a float twin that is written to be run; that of a larger model is not run."""


@dataclasses.dataclass(frozen=True)
class Known:
    """A quantized graph's codes, the weights that they were made of by role, and whether text chose them."""

    coded: list[Coded]
    weights: Mapping[str, Weight]
    chosen: bool


def structure_checks(
    path: Path,
    source: Opened,
    reference: Model,
    facts: Facts,
    windows: np.ndarray,
    noise: Callable[[], Noise],
    memory: int,
    skip: Collection[str],
    progress: Progress,
) -> dict[str, Check]:
    """The checks ``codes`` and ``float_twin``; not run, with the reason, where the source says nothing of the roles.

    Args:
        path: the quantized graph.
        source: what the reference was opened from.
        noise: gives the reference's own; asked only where the twin is run.
        skip: cases that are not to be run.
    """
    model = read_file(path)
    coded = coded_nodes(model.graph)
    known = coded if isinstance(coded, str) else _known(path, coded, source)
    if isinstance(known, str):
        return dict.fromkeys(("codes", "float_twin"), Check(verdict="not run", detail=known))
    progress.advance(0, 1, "codes")
    worst = furthest(known.coded, known.weights, chosen=known.chosen)
    codes = Check(
        verdict="pass" if worst.times <= TIMES else "fail",
        detail=worst.where,
        value=worst.times,
        limit=TIMES,
        unit="x rounding",
    )
    size = sum(4 * int(np.prod(weight.shape)) for weight in known.weights.values())
    if size > LARGEST:
        reason = f"the twin takes {size >> 20} MB, more than {LARGEST >> 20}"
        return {"codes": codes, "float_twin": Check(verdict="not run", detail=reason)}
    make_twin(model, known.coded, known.weights)
    with tempfile.TemporaryDirectory(prefix="onnx-gpt-twin-") as folder:
        progress.advance(0, 1, "writing the float twin")
        save(model, Path(folder), progress)
        twin = Candidate(Path(folder) / MODEL, name="float twin")
        progress.advance(0, 1, "the float twin")
        return {
            "codes": codes,
            "float_twin": _twin_check(twin, reference, facts, windows, noise(), memory, skip),
        }


def _twin_check(
    twin: Candidate,
    reference: Model,
    facts: Facts,
    windows: np.ndarray,
    noise: Noise,
    memory: int,
    skip: Collection[str],
) -> Check:
    """The twin on a text and in every case, as a float candidate is judged; the worst of all."""
    window = windows[0]
    ours, theirs = twin.logits(window[None])[0], reference.logits(window[None])[0]
    found = deviation(row_differences(ours, theirs))
    trial = Trial(twin, reference, window[:LENGTH], ours.shape[-1], facts.context, facts.window, memory)
    cases = run_checks(trial, noise=noise, limit=0.0, far_limit=0.0, skip=skip)
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


def _known(path: Path, coded: list[Coded], source: Opened) -> Known | str:
    """The weights of all roles, or why they are not known."""
    if isinstance(source, ModuleSource):
        return "the reference is a module, whose graph is not exported again"
    recipe, pipeline = _made_by(path.parent)
    if recipe.get("quantize") == "keep":
        return "the codes are the source's own, of which the reference is made"
    if recipe.get("quantize") == "w8a8" or recipe.get("method") == "awq":
        return "channels were scaled by calibration text, so that the codes are not of the source's weights as they are"
    try:
        exported = export(source, _context(recipe))
        run_pipeline(exported.model, pipeline, verify=False)
    except OnnxGptError as error:
        return f"the reference is not exported by the candidate's passes: {error.cause}"
    sites = [site for site in map(site_of, list(exported.model.graph)) if site is not None]
    weights = {site.role: site.weight for site in sites}
    rows: dict[tuple[str, str], int] = {}
    for one in coded:
        if one.role not in weights:
            return f"the reference has no weight with the role {one.role!r}"
        rows[one.kind, one.role] = rows.get((one.kind, one.role), 0) + one.shape[0]
        if not weights[one.role].shape[1] <= one.shape[1]:
            return f"{one.role} has {one.shape[1]} columns, the reference's {weights[one.role].shape[1]}"
    for (_, role), count in rows.items():
        if weights[role].shape[0] != count:
            return f"{role} has {count} rows in the candidate and {weights[role].shape[0]} in the reference"
    return Known(coded, weights, recipe.get("method") == "gptq")


def _made_by(folder: Path) -> tuple[dict[str, Any], str]:
    """Recipe and passes that the report beside a graph names; those of our usual target where there is none."""
    report = folder / REPORT
    if not report.is_file():
        return {}, ORT_PIPELINE
    document = json.loads(report.read_text("utf-8"))
    return document.get("recipe", {}), str(document.get("pipeline", ORT_PIPELINE))


def _context(recipe: Mapping[str, Any]) -> int | None:
    asked = recipe.get("context_length")
    return asked if isinstance(asked, int) else None
