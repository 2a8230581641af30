"""The main job: source → graph → passes → quantization → parity → bundle.

Stages are functions from value to value. Nothing before *write* reads a weight.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from calibration.quantization.weight_only import Treatment, quantize_weights
from exporter import sources
from exporter.errors import unsupported
from graph_passes import PassReport, run_pipeline
from graph_passes.lint import require_no_cliffs
from onnx_gpt._version import __version__
from onnx_gpt.bundle.staging import require_absent, require_space, staged
from onnx_gpt.bundle.targets import BundleFacts
from onnx_gpt.bundle.targets import target as target_of
from onnx_gpt.bundle.writing import MODEL, lay_out, nbytes, save
from onnx_gpt.exporting import MODULE_PIPELINE, Exported, export, opened_config
from onnx_gpt.parity.prove import prove, require_passed
from onnx_gpt.progress import Progress, Silent
from onnx_gpt.recipe import Recipe
from onnx_gpt.report import SCHEMA, GraphFacts, Limits, Parity, PassFacts, Report, SourceFacts, Stages


def optimize(
    source: str,
    out: str | Path,
    *,
    quantize: str = "none",
    block_size: int | None = None,
    table_bits: int | None = None,
    target: str | Sequence[str] = "ort",
    context_length: int | None = None,
    parity: bool = True,
    limits: Limits | None = None,
    text: Path | None = None,
    tokens: int = 2048,
    progress: Progress | None = None,
) -> Report:
    """Turn a trained decoder into a bundle that has been proven.

    Args:
        source: what `exporter.sources.load` takes.
        out: directory to make; it appears whole, or not at all.
        progress: told what happens. The other settings are those of `Recipe`.

    Returns:
        What ``report.json`` of the bundle says.

    Raises:
        OnnxGptError: with the exit status of docs/errors.md; ``parity-failed`` (exit 5) publishes nothing.
    """
    targets = (target,) if isinstance(target, str) else tuple(target)
    recipe = Recipe(quantize, block_size, table_bits, targets, context_length, parity, limits, text, tokens)
    return run(source, Path(out), recipe, progress or Silent())


def run(source: str, out: Path, recipe: Recipe, progress: Progress) -> Report:
    """`optimize` with its settings as one value."""
    require_absent(out)
    stages = Stages(progress.stage)
    with stages.stage("load"):
        opened = sources.load(source)
    with stages.stage("export") as facts:
        exported = export(opened, recipe.context_length)
        facts["nodes"] = len(exported.model.graph)
    with stages.stage("passes") as facts:
        pipeline = target_of(recipe.targets[0]).PIPELINE if exported.decoder is not None else MODULE_PIPELINE
        passes = run_pipeline(exported.model, pipeline)
        facts["nodes"] = len(exported.model.graph)
    with stages.stage("quantize") as facts:
        quantized = quantize(exported, recipe)
        facts["nodes"] = len(exported.model.graph)
    require_no_cliffs(exported.model)
    bundle_facts = BundleFacts(exported.decoder, opened_config(opened), opened.files)
    extra = {name: target_of(name).files(bundle_facts) for name in recipe.targets}
    require_space(out, len(recipe.targets) * nbytes(exported.model))
    with staged(out) as stage:
        with stages.stage("write"):
            save(exported.model, stage, progress)
        parity: Parity | None = None
        if recipe.parity:
            with stages.stage("parity"):
                parity = prove(opened, exported, stage / MODEL, recipe, progress)
        report = _report(source, exported, recipe, pipeline, stages, passes, quantized, stage, parity)
        require_passed(parity)
        lay_out(stage, extra, report)
    return report


def quantize(exported: Exported, recipe: Recipe) -> dict[str, int]:
    """Replace float weights by codes, lazily. Gives how many uses of a weight took which format."""
    if recipe.quantize == "none":
        return {}
    if exported.decoder is None:
        raise unsupported(
            "module-quantize",
            "weights of a graph that torch exported have no roles yet and cannot be quantized",
            "use --quantize none, or save the model as a checkpoint of a known family",
        )
    done = quantize_weights(exported.model, recipe.scheme())
    return dict(collections.Counter(map(_format, done)))


def _format(treatment: Treatment) -> str:
    if treatment.bits is None:
        return f"float32: {treatment.reason}"
    minimum = " with minimum" if treatment.minimum else ""
    return f"{treatment.bits} bits, blocks of {treatment.block_size}{minimum}"


def _report(
    uri: str,
    exported: Exported,
    recipe: Recipe,
    pipeline: str,
    stages: Stages,
    passes: Sequence[PassReport],
    quantized: dict[str, int],
    stage: Path,
    parity: Parity | None,
) -> Report:
    model = exported.model
    ops = collections.Counter(f"{n.domain}::{n.op_type}" if n.domain else n.op_type for n in model.graph)
    bodies = {identifier: len(function) for identifier, function in model.functions.items()}
    inlined = sum(bodies.get(node.op_identifier(), 1) for node in model.graph)
    return Report(
        schema=SCHEMA,
        version=__version__,
        source=SourceFacts(uri=uri, family=exported.family, parameters=exported.parameters),
        recipe=recipe.echo(),
        pipeline=pipeline,
        stages=tuple(stages.done),
        passes=tuple(PassFacts(**dataclasses.asdict(entry)) for entry in passes),
        graph=GraphFacts(nodes=sum(ops.values()), inlined_nodes=inlined, ops=dict(ops.most_common())),
        quantization=quantized,
        files={path.name: path.stat().st_size for path in sorted(stage.iterdir())},
        parity=parity or "not run",
    )
