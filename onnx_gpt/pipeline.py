"""The main job: source → graph → passes → quantization → parity → bundle.

Stages are functions from value to value. Nothing before *write* reads a weight.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from calibration.kv_cache import attentions_with_cache, quantize_cache
from calibration.quantization.weight_only import Coders, Treatment, quantize_weights
from calibration.transforms.rotation import rotated
from exporter import sources
from exporter.checkpoint import Opened
from exporter.emitter import ROLE
from exporter.errors import unsupported
from graph_passes import PassReport, run_pipeline
from graph_passes.lint import require_no_cliffs
from onnx_gpt._version import __version__
from onnx_gpt.bundle.decoder_facts import decoder_facts
from onnx_gpt.bundle.staging import require_absent, require_space, scratch, staged
from onnx_gpt.bundle.targets import BundleFacts
from onnx_gpt.bundle.targets import target as target_of
from onnx_gpt.bundle.writing import MODEL, lay_out, nbytes, save
from onnx_gpt.calibrating import cache_ranges, calibration_windows
from onnx_gpt.codes import choose_codes
from onnx_gpt.exporting import Exported, export, opened_config, pipeline_of, require_contract
from onnx_gpt.parity.prove import prove, require_passed
from onnx_gpt.progress import Progress, Silent
from onnx_gpt.recipe import Recipe
from onnx_gpt.report import SCHEMA, GraphFacts, Limits, Parity, PassFacts, Report, SourceFacts, Stages
from onnx_gpt.static_int8 import quantize_statically


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
    kv_cache: str = "float",
    verify: bool = True,
    calibration: Path | None = None,
    passes: str | None = None,
    method: str | None = None,
    mixed: str = "",
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
    recipe = Recipe(
        quantize=quantize,
        block_size=block_size,
        table_bits=table_bits,
        targets=targets,
        context_length=context_length,
        parity=parity,
        limits=limits,
        text=text,
        tokens=tokens,
        kv_cache=kv_cache,
        verify=verify,
        calibration=calibration,
        passes=passes,
        method=method,
        mixed=mixed,
    )
    return run(source, Path(out), recipe, progress or Silent())


def run(source: str, out: Path, recipe: Recipe, progress: Progress) -> Report:
    """`optimize` with its settings as one value."""
    require_absent(out)
    with scratch(out) as folder:
        return _run(source, out, recipe, progress, folder)


def _run(source: str, out: Path, recipe: Recipe, progress: Progress, folder: Path) -> Report:
    stages = Stages(progress.stage)
    with stages.stage("load"):
        opened = sources.load(source)
    with stages.stage("export") as facts:
        exported = export(opened, recipe.context_length, transform=rotated if recipe.is_static else None)
        facts["nodes"] = len(exported.model.graph)
    with stages.stage("passes") as facts:
        pipeline = pipeline_of(exported, recipe.passes, recipe.targets[0])
        passes = run_pipeline(exported.model, pipeline, verify=recipe.verify)
        require_contract(exported.model, passes)
        decoder = decoder_facts(exported.model, exported.vocab_size, exported.context_length)
        facts["nodes"] = len(exported.model.graph)
    calibration: dict[str, Any] = {}
    coders: Coders = {}
    if recipe.chooses_codes:
        with stages.stage("codes"):
            coders, calibration = choose_codes(opened, exported, recipe, folder, progress)
    static: Sequence[str] = ()
    if recipe.is_static:
        with stages.stage("ranges"):
            static, calibration = quantize_statically(opened, exported, recipe, folder / "ranges", progress)
    if recipe.kv_cache == "int8":
        with stages.stage("cache"):
            cached = quantize_kv_cache(opened, exported, recipe, folder / "cache", progress)
            calibration = cached | calibration
    with stages.stage("quantize") as facts:
        quantized = quantize(exported, recipe, coders)
        if static:
            quantized |= {"8 bits by channel, inputs 8 bits by tensor": len(static)}
        facts["nodes"] = len(exported.model.graph)
    require_no_cliffs(exported.model)
    bundle_facts = BundleFacts(decoder, opened_config(opened, decoder), opened.files)
    extra = {name: target_of(name).files(bundle_facts) for name in recipe.targets}
    require_space(out, len(recipe.targets) * nbytes(exported.model))
    with staged(out) as stage:
        with stages.stage("write"):
            save(exported.model, stage, progress)
        parity: Parity | None = None
        if recipe.parity:
            with stages.stage("parity"):
                parity = prove(opened, exported, stage / MODEL, recipe, progress)
        report = _report(
            source, exported, recipe, pipeline, stages, passes, quantized, calibration, stage, parity
        )
        require_passed(parity)
        lay_out(stage, extra, report)
    return report


def quantize_kv_cache(
    opened: Opened, exported: Exported, recipe: Recipe, folder: Path, progress: Progress
) -> dict[str, Any]:
    """Let the float graph keep its cache as int8, with scales from what it holds on calibration text; which text."""
    attentions_with_cache(exported.model)  # refused before anything is run
    windows = calibration_windows(opened, exported, recipe.calibration)
    quantize_cache(exported.model, cache_ranges(exported.model, windows.tokens, folder, progress))
    return windows.facts()


def quantize(exported: Exported, recipe: Recipe, coders: Coders) -> dict[str, int]:
    """Replace float weights by codes, lazily. Gives how many uses of a weight took which format."""
    if recipe.quantize == "none":
        return {}
    if not any(ROLE in node.metadata_props for node in exported.model.graph):
        raise unsupported(
            "module-quantize",
            "the weights of this graph have no roles, by which a scheme speaks of them",
            "use --quantize none, or save the model as a checkpoint of a known family",
        )
    done = quantize_weights(exported.model, recipe.scheme(), coders)
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
    calibration: dict[str, Any],
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
        passes=tuple(PassFacts.model_validate(entry, from_attributes=True) for entry in passes),
        graph=GraphFacts(nodes=sum(ops.values()), inlined_nodes=inlined, ops=dict(ops.most_common())),
        quantization=quantized,
        calibration=calibration,
        files={path.name: path.stat().st_size for path in sorted(stage.iterdir())},
        parity=parity or "not run",
    )
