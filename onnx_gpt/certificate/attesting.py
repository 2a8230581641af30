"""The last step of a job: trace the weights of every model, and certify every folder."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from exporter.checkpoint import Checkpoint, Opened
from exporter.errors import Exit, OnnxGptError
from exporter.onnx_format.reader import read_file
from onnx_gpt.bundle.plan import Build, folders
from onnx_gpt.bundle.writing import MODEL
from onnx_gpt.certificate.background import begin
from onnx_gpt.certificate.issuing import Model, certified_files, certify, source_facts
from onnx_gpt.certificate.probes import CASES, TOKENS, Asked
from onnx_gpt.certificate.schema import TraceFacts
from onnx_gpt.certificate.tracing import expected_of, trace
from onnx_gpt.certificate.tracing.comparing import tolerance_of
from onnx_gpt.optimizing.building import Built
from onnx_gpt.optimizing.job import Job
from onnx_gpt.parity.limits import scheme_of, self_limit
from onnx_gpt.parity.text import evaluation_tokens
from onnx_gpt.report import Report

TRACED_ROWS = 48
"""Rows of each matrix that a job traces; `validate` compares all of them with a twin."""


def attest(
    stage: Path, job: Job, built: Sequence[Built], asked: Asked | None, reports: Sequence[Report]
) -> dict[str, str]:
    """Write the certificate of every target's folder. Gives their digests by target.

    Args:
        stage: the output as it is being made; every other file has its final bytes.
        asked: what the reference said; None where parity was not run.
        reports: of each target, as they lie in its folder.

    Raises:
        OnnxGptError: ``weights-untrue`` (exit 5) where a weight is not the source's.
    """
    plan, opened = job.plan, job.opened
    traces: dict[int, TraceFacts | None] = {}
    places = [stage / name for name in folders(plan.targets)]
    files = [begin(partial(certified_files, folder)) for folder in places]
    windows = None if asked is not None else partial(_windows, opened, built[0])
    source = source_facts(job.digests(built[0].exported.module), reports[0])
    digests = {}
    for target, folder, hashed, uses, report in zip(
        plan.targets, places, files, plan.uses, reports, strict=True
    ):
        for model, i in zip(target.models, uses, strict=True):
            if i not in traces:
                traces[i] = _traced(opened, plan.builds[i], built[i], folder / model.path)
        models = tuple(
            Model(
                path=model.path,
                opened=model.opened or model.path,
                drift=self_limit(_scheme(folder / model.path, plan.builds[i])),
                facts=built[i].facts,
                trace=traces[i],
            )
            for model, i in zip(target.models, uses, strict=True)
        )
        digests[target.name] = certify(
            folder,
            target=target.name,
            models=models,
            source=source,
            files=hashed,
            report=report,
            asked=asked,
            windows=windows,
        )
    return digests


def _traced(opened: Opened, wanted: Build, built: Built, placed: Path) -> TraceFacts | None:
    """Where a model's weights come from. A graph that somebody else exported would have to be made canonical again.

    Args:
        placed: the model's file in the bundle; where that is no ``.onnx``, it still lies where it was written.
    """
    places = (path for path in (placed, built.folder / MODEL) if path.suffix == ".onnx")
    written = next(filter(Path.is_file, places), None)
    if not isinstance(opened, Checkpoint) or written is None:
        return None
    recipe = wanted.recipe
    expected = expected_of(opened, built.transform)
    found = trace(
        read_file(written), expected, tolerance_of(recipe.quantize, recipe.resolved_method), TRACED_ROWS
    )
    if found.failures:
        raise OnnxGptError(
            "weights-untrue",
            f"{len(found.failures)} weights of {wanted.name} are not those of {opened.uri}; nothing was published",
            "report this as a defect, with the command that was run",
            exit=Exit.PARITY,
            details=found.failures,
        )
    return TraceFacts(exact=len(found.exact), rounded=len(found.rounded), untraced=found.untraced)


def _scheme(path: Path, wanted: Build) -> str:
    """What a graph is judged as; where the target has made something else of it, what was asked for."""
    return scheme_of(path) if path.suffix == ".onnx" and path.is_file() else wanted.recipe.gate


def _windows(opened: Opened, built: Built) -> np.ndarray:
    """Tokens that the bundle's own models are asked on where there is no reference: of English, or where the tokenizer
    is one of music or of proteins and knows none, any."""
    exported = built.exported
    draw = partial(
        evaluation_tokens,
        vocab_size=exported.vocab_size,
        tokens=CASES * TOKENS,
        window=min(TOKENS, exported.context_length or TOKENS),
    )
    try:
        return draw(opened.files.get("tokenizer.json")).windows
    except OnnxGptError as error:
        if error.code not in ("text-too-short", "tokenizer-invalid"):
            raise
        return draw(None).windows
