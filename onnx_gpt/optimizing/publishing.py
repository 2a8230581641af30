"""Lays out what a job has made and proven: models, small files, report; every target whole or nothing."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from exporter.checkpoint import Opened
from exporter.errors import Exit, OnnxGptError
from onnx_gpt.bundle.plan import Plan, folders
from onnx_gpt.bundle.staging import staged
from onnx_gpt.bundle.targets import BundleFacts, ModelFile, Target
from onnx_gpt.bundle.writing import MODEL, REPORT, place
from onnx_gpt.certificate.attesting import attest
from onnx_gpt.certificate.probes import Asked
from onnx_gpt.exporting import opened_config
from onnx_gpt.optimizing.building import Built
from onnx_gpt.optimizing.job import Job
from onnx_gpt.parity.candidate import Candidate
from onnx_gpt.parity.limits import self_limit
from onnx_gpt.parity.metrics import mean_kl
from onnx_gpt.recipe_file import FILE as RECIPE
from onnx_gpt.report import ModelFacts, Report

COMPARED = 16
"""Tokens on which a file that a target's last step made is compared with the model that it was made of."""

ReportOf = Callable[[ModelFacts, dict[str, ModelFacts], dict[str, int]], Report]
"""The report of a folder: of its first model, of all by path where there are several, and its files' sizes."""


def bundle_facts(built: Built, opened: Opened, data_files: dict[str, int] | None = None) -> BundleFacts:
    """What a target's small files are made of."""
    return BundleFacts(built.decoder, opened_config(opened, built.decoder), opened.files, data_files or {})


def publish(
    job: Job, built: Sequence[Built], report_of: ReportOf, recipe: str, asked: Asked | None
) -> Report:
    """Put everything that was built into a job's ``out``. Gives the report of the first target, with the files of all.

    Args:
        recipe: text of the recipe.toml that makes all of this again.
        asked: what the reference said, for the certificate; None where parity was not run.

    Raises:
        OnnxGptError: ``output-exists`` (10), ``disk-full`` (7), ``tensor-too-large`` (3); ``parity-failed`` (5) where a
            target's last step changes what a model computes; ``weights-untrue`` (5).
    """
    plan, places = job.plan, folders(job.plan.targets)
    reports: list[Report] = []
    moves = _moves(plan)
    with staged(job.out) as stage:
        for target, name, uses in zip(plan.targets, places, plan.uses, strict=True):
            models = [built[i] for i in uses]
            folder = stage / name
            folder.mkdir(exist_ok=True)
            counts = {
                model.path: place(made.folder, model, folder, move=next(moves))
                for model, made in zip(target.models, models, strict=True)
            }
            for path, content in target.files(bundle_facts(models[0], job.opened, counts)).items():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(content)
            (folder / RECIPE).write_text(recipe, "utf-8", newline="\n")
            _finish(target, folder, models)
            reports.append(_reported(target, folder, models, report_of))
        certificates = attest(stage, job, built, asked, reports)
    first = reports[0].model_copy(update={"certificates": certificates})
    if len(reports) == 1:
        return first
    files = {
        f"{name}/{file}": size
        for name, report in zip(places, reports, strict=True)
        for file, size in report.files.items()
    }
    return first.model_copy(update={"files": files})


def _moves(plan: Plan) -> Iterator[bool]:
    """For each model of each target in order: whether nothing needs it where it was written afterwards."""
    left = collections.Counter(i for uses in plan.uses for i in uses)
    for target, uses in zip(plan.targets, plan.uses, strict=True):
        for model, i in zip(target.models, uses, strict=True):
            left[i] -= 1
            yield left[i] == 0 and model.opened is None


def _finish(target: Target, folder: Path, models: Sequence[Built]) -> None:
    if target.finish is None:
        return
    target.finish(folder)
    for model, built in zip(target.models, models, strict=True):
        if model.opened is not None:
            _require_same(folder / model.opened, model, built)


def _require_same(opened: Path, model: ModelFile, built: Built) -> None:
    """What a runtime opens gives what the proven model gives, up to what kernels reorder."""
    count = min(COMPARED, built.exported.context_length or COMPARED)
    tokens = np.random.default_rng(0).integers(0, built.exported.vocab_size, (1, count))
    theirs = Candidate(built.folder / MODEL).logits(tokens)[0]
    ours = Candidate(opened).logits(tokens)[0]
    found, limit = mean_kl(ours, theirs), self_limit(str(built.facts.recipe["quantize"]))
    if not found <= limit:
        raise OnnxGptError(
            "parity-failed",
            f"{model.opened} is not the model that was proven: mean KL {found:.3g} > {limit:.3g}",
            f"report this as a defect; {model.runtime.name} can run {model.path} itself where it reads ONNX",
            exit=Exit.PARITY,
        )


def _reported(target: Target, folder: Path, models: Sequence[Built], report_of: ReportOf) -> Report:
    several = {model.path: built.facts for model, built in zip(target.models, models, strict=True)}
    files = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    report = report_of(models[0].facts, several if len(several) > 1 else {}, files)
    (folder / REPORT).write_text(report.json_text(), "utf-8", newline="\n")
    return report
