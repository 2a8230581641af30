"""The main job: source → graphs → passes → quantization → parity → bundles.

Stages are functions from value to value. What several targets want alike is made once (`onnx_gpt.bundle.plan`); models
are written one after the other, then proven one after the other against one reference.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from exporter import sources
from exporter.checkpoint import ModuleSource
from onnx_gpt._version import __version__
from onnx_gpt.bundle.plan import plan
from onnx_gpt.bundle.reading import require_readable
from onnx_gpt.bundle.staging import require_absent, require_space, scratch, unfinished
from onnx_gpt.bundle.writing import MODEL
from onnx_gpt.certificate.probes import Asked, ask
from onnx_gpt.certificate.source import digesting
from onnx_gpt.exporting import Exported
from onnx_gpt.lineage import lineage_of
from onnx_gpt.optimizing.building import Built, build, write
from onnx_gpt.optimizing.job import Job
from onnx_gpt.optimizing.publishing import ReportOf, publish
from onnx_gpt.parity.prove import evaluation_text, prove_against, reference_of, require_passed
from onnx_gpt.planning.prediction import Predicted
from onnx_gpt.progress import Progress, Silent
from onnx_gpt.recipe import Recipe
from onnx_gpt.recipe_file import SEARCHED, predicted_of, recipe_of, toml_text
from onnx_gpt.report import SCHEMA, ModelFacts, Report, SourceFacts, Stages
from onnx_gpt.searching.allocating import allocate
from onnx_gpt.searching.budget import parse_budget
from onnx_gpt.unread import refuse_unread


def optimize(
    source: str,
    out: str | Path,
    *,
    recipe: Path | None = None,
    budget: str | None = None,
    work: Path | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Report:
    """Turn a trained decoder into a bundle that has been proven.

    Args:
        source: what `exporter.sources.load` takes.
        out: directory to make; it appears whole, or not at all.
        recipe: settings from a .toml file, a bundle's recipe.toml say.
        budget: ``size=90MB``, ``kl=0.03``, ``decode=150`` or several: formats of all weights are searched for
            (`onnx_gpt.searching.allocating`).
        work: folder that a search keeps its measurements in; one in the user's cache by default.
        progress: told what happens.
        settings: those of `Recipe`, ``target`` for its targets; they go before the file's.

    Returns:
        What ``report.json`` of the bundle says.

    Raises:
        OnnxGptError: with the exit status of docs/errors.md; ``parity-failed`` (exit 5) publishes nothing.
    """
    job = recipe_of(settings, recipe, defaults=None if budget is None else SEARCHED)
    expected = predicted_of(recipe) if budget is None else None
    return run(source, Path(out), job, progress or Silent(), budget=budget, work=work, predicted=expected)


def run(
    source: str,
    out: Path,
    recipe: Recipe,
    progress: Progress,
    *,
    budget: str | None = None,
    work: Path | None = None,
    predicted: Predicted | None = None,
) -> Report:
    """`optimize` with its settings as one value, and what a plan expects of them."""
    require_absent(out)
    if budget is None:
        refuse_unread({"work": work}, "there is no budget to search for", "give --budget")
    search: dict[str, Any] = {}
    if budget is not None:
        found = allocate(source, parse_budget(budget), recipe, work=work, progress=progress)
        recipe, search = found.recipe, found.json()
    made = plan(recipe)
    chooses = any(one.recipe.chooses_codes or one.recipe.is_static for one in made.builds)
    stages = Stages(progress.stage)
    with scratch(out) as folder, unfinished(out) if chooses else nullcontext(folder) as kept:
        with stages.stage("load"):
            opened = sources.load(source)
            if not isinstance(opened, ModuleSource):
                require_readable(opened.config, opened.files)
        job = Job(opened, digesting(opened), recipe, made, out, folder, kept, stages, progress)
        built = [_written(job, i) for i in range(len(made.builds))]
        asked: Asked | None = None
        if recipe.parity:
            with stages.stage("parity"):
                built, asked = _proven(job, built)
        report_of = _reporter(job, source, built[0].exported, search, predicted)
        return publish(job, built, report_of, toml_text(recipe.resolved(), predicted), asked)


def _reporter(
    job: Job, source: str, exported: Exported, search: dict[str, Any], predicted: Predicted | None
) -> ReportOf:
    """Makes the report of a folder, when its files are known."""
    lineage = lineage_of(source)
    path = job.plan.targets[0].models[0].path

    def report_of(first: ModelFacts, models: dict[str, ModelFacts], files: dict[str, int]) -> Report:
        size = sum(nbytes for name, nbytes in files.items() if name.startswith(path))
        return Report(
            schema=SCHEMA,
            version=__version__,
            source=SourceFacts(uri=source, family=exported.family, parameters=exported.parameters),
            recipe=job.recipe.echo(),
            pipeline=first.pipeline,
            stages=tuple(job.stages.done),
            passes=first.passes,
            graph=first.graph,
            quantization=first.quantization,
            calibration=first.calibration,
            files=files,
            parity=first.parity,
            models=models,
            search=search,
            predicted={} if predicted is None else predicted.against(size, first.parity),
            lineage=lineage,
        )

    return report_of


def _written(job: Job, i: int) -> Built:
    """The i-th build, in its folder."""
    built = build(job, i)
    require_space(job.out, sum(uses.count(i) for uses in job.plan.uses) * built.nbytes)
    with job.stage(job.plan.builds[i])("write"):
        write(built, job.progress)
    return built


def _proven(job: Job, built: Sequence[Built]) -> tuple[list[Built], Asked]:
    """What was built, with its parity, and what the certificate's probes hold; one reference for all.

    Raises:
        OnnxGptError: ``parity-failed`` (exit 5) at the first model that fails.
    """
    builds, opened, exported = job.plan.builds, job.opened, built[0].exported
    strictest = next((b for b in builds if b.recipe.quantize == "none"), builds[0])
    text = evaluation_text(opened, exported, strictest.recipe)
    proven = []
    with reference_of(opened, exported, strictest.recipe, job.progress, models=len(built)) as reference:
        for wanted, one in zip(builds, built, strict=True):
            parity = prove_against(reference, text, one.folder / MODEL, wanted.recipe, job.progress)
            require_passed(parity, wanted.recipe.quantize, wanted.name if len(built) > 1 else "")
            proven.append(dataclasses.replace(one, facts=one.facts.model_copy(update={"parity": parity})))
        asked = ask(reference.model, text.windows)
    return proven, asked
