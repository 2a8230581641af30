"""One model of a job: source → graph → passes → quantization → a written file.

Nothing before `write` reads a weight, but what calibration runs.
"""

from __future__ import annotations

import collections
import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from calibration.dynamic.products import quantize_dynamically
from calibration.kv_cache import attentions_with_cache, hold_scores, quantize_cache
from calibration.quantization.constant_scales import fold_lookup_scales
from calibration.quantization.sites import site_of
from calibration.quantization.weight_only import Coders, Treatment, quantize_weights
from calibration.scheme import TABLE, Dynamic, Floats, WeightOnly, fits, layers_named
from calibration.transforms.rotation import rotated
from exporter.checkpoint import Opened
from exporter.emitter import ROLE
from exporter.errors import Exit, OnnxGptError, unsupported
from graph_passes import run_pipeline
from graph_passes.lint import require_no_cliffs
from onnx_gpt.bundle.decoder_facts import DecoderFacts, decoder_facts
from onnx_gpt.bundle.plan import Build
from onnx_gpt.bundle.runtime import require_runs
from onnx_gpt.bundle.targets import BundleFacts
from onnx_gpt.bundle.writing import nbytes, save
from onnx_gpt.exporting import Exported, Transform, export, opened_config, pipeline_of, require_contract
from onnx_gpt.optimizing.calibrating import cache_ranges, calibration_windows
from onnx_gpt.optimizing.channels import Channels, channels_of
from onnx_gpt.optimizing.codes import choose_codes
from onnx_gpt.optimizing.halving import HalfPlan, plan_half
from onnx_gpt.optimizing.job import Job
from onnx_gpt.optimizing.static_int8 import quantize_statically
from onnx_gpt.progress import Progress
from onnx_gpt.recipe import Recipe
from onnx_gpt.report import GraphFacts, ModelFacts, PassFacts

DYNAMIC = "8 bits by channel, inputs 8 bits by token"
"""What a report calls the format of `calibration.dynamic`."""


@dataclasses.dataclass(frozen=True)
class Built:
    """A finished model.

    Attributes:
        folder: where `write` puts it; what is needed until then lies there too.
        exported: its graph, lazy, and what is known of the source.
        decoder: None for a graph without a cache.
        facts: for the report; parity is ``not run`` as long as it has not.
        transform: what the checkpoint's decoder went through before its graph was built.
    """

    folder: Path
    exported: Exported
    decoder: DecoderFacts | None
    facts: ModelFacts
    transform: Transform | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that its weights take."""
        return nbytes(self.exported.model)


def build(job: Job, i: int) -> Built:
    """Make the graph of a job's i-th build and decide how each of its weights is written.

    Raises:
        OnnxGptError: with the exit status of docs/errors.md.
    """
    wanted, opened, progress = job.plan.builds[i], job.opened, job.progress
    recipe, stage, folder = wanted.recipe, job.stage(wanted), job.folder / str(i)
    folder.mkdir(parents=True)
    channels: Channels | None = None
    if recipe.scales_channels:
        with stage("channels"):
            channels = channels_of(opened, recipe, wanted.pipeline, folder / "channels", progress)
    with stage("export") as facts:
        transform = None if channels is None else channels.transform
        if recipe.is_dynamic:
            transform = rotated
        exported = export(opened, recipe.context_length, transform=transform)
        facts["nodes"] = len(exported.model.graph)
    with stage("passes") as facts:
        pipeline = pipeline_of(exported, recipe.passes, wanted.pipeline)
        passes = run_pipeline(exported.model, pipeline, verify=recipe.verify)
        require_contract(exported.model, passes)
        _drop_unread_mask(exported.model.graph)
        decoder = decoder_facts(exported.model, exported.vocab_size, exported.context_length)
        if exported.context_length is None and decoder is not None:  # what tables of positions hold
            exported = dataclasses.replace(exported, context_length=decoder.context_length)
        facts["nodes"] = len(exported.model.graph)
    _require_wanted(job, i, decoder)
    quantized, calibration = _quantize(job, i, exported, channels)
    if wanted.constant_scales:
        fold_lookup_scales(exported.model)
    for runtime in wanted.runtimes:
        require_runs(exported.model, runtime)
    model_facts = ModelFacts(
        recipe=recipe.echo(),
        pipeline=pipeline,
        passes=tuple(PassFacts.model_validate(entry, from_attributes=True) for entry in passes),
        graph=graph_facts(exported),
        quantization=quantized,
        calibration=calibration,
        parity="not run",
    )
    return Built(folder, exported, decoder, model_facts, transform)


def _require_wanted(job: Job, i: int, decoder: DecoderFacts | None) -> None:
    """What its targets refuse is refused before text is run and before anything is written."""
    facts = BundleFacts(decoder, opened_config(job.opened, decoder), job.opened.files)
    for target, uses in zip(job.plan.targets, job.plan.uses, strict=True):
        if i in uses:
            target.files(facts)


def write(built: Built, progress: Progress) -> None:
    """Stream a model into its folder, and drop what it was made of."""
    save(built.exported.model, built.folder, progress)
    shutil.rmtree(built.folder / "channels", ignore_errors=True)


def _drop_unread_mask(graph: ir.Graph) -> None:
    """A graph without a cache that reads no mask does not take one: nobody shall pad batches for it."""
    masks = [value for value in graph.inputs if value.name == "attention_mask" and not value.uses()]
    if masks and all(not str(value.name).startswith("past_key_values") for value in graph.inputs):
        graph.inputs.remove(masks[0])


def _quantize(
    job: Job, i: int, exported: Exported, channels: Channels | None
) -> tuple[dict[str, int], dict[str, Any]]:
    """Formats by how many uses of a weight took them, and the facts of the text that was calibrated on."""
    wanted, opened, progress = job.plan.builds[i], job.opened, job.progress
    recipe, stage, folder = wanted.recipe, job.stage(wanted), job.folder / str(i)
    _require_meant(exported.model, recipe)
    calibration: dict[str, Any] = {} if channels is None else dict(channels.text)
    coders: Coders = {}
    if recipe.chooses_codes:
        with stage("codes"):
            coders, calibration = choose_codes(opened, exported, recipe, job.codes(i), progress)
    static: Sequence[str] = ()
    if recipe.is_static:
        with stage("ranges"):
            static, coders, text = quantize_statically(
                opened, exported, recipe, channels.static if channels else (), job.codes(i), progress
            )
            calibration |= text
    if recipe.kv_cache == "int8":
        with stage("cache"):
            cached = quantize_kv_cache(opened, exported, wanted, folder / "cache", progress)
            calibration = cached | calibration
    halves: HalfPlan | None = None
    if recipe.is_half:
        with stage("float16"):
            halves = plan_half(opened, exported, recipe, folder / "float16", progress)
            calibration = dict(halves.text) | calibration
    with stage("quantize") as facts:
        if recipe.is_dynamic:
            quantized = {DYNAMIC: len(quantize_dynamically(exported.model))}
        else:
            quantized = quantize(exported, recipe, coders)
        by_token = set(static) & set(channels.static if channels else ())
        for roles, inputs in ((set(static) - by_token, "tensor"), (by_token, "token")):
            if roles:
                quantized |= {f"8 bits by channel, inputs 8 bits by {inputs}": len(roles)}
        facts["nodes"] = len(exported.model.graph)
    require_no_cliffs(exported.model)  # of a CPU, before float16, which is not for one
    if halves is not None:
        calibration |= {"float16": halves.apply(exported.model)}
    return quantized, calibration


def quantize_kv_cache(
    opened: Opened, exported: Exported, wanted: Build, folder: Path, progress: Progress
) -> dict[str, Any]:
    """Let the float graph keep its cache as int8, with scales from what it holds on calibration text; which text."""
    model, recipe = exported.model, wanted.recipe
    attentions_with_cache(model)  # refused before anything is run
    windows = calibration_windows(opened, exported, recipe.calibration, recipe.calibration_windows)
    quantize_cache(model, cache_ranges(model, windows.tokens, folder, progress))
    if all(runtime.pieces for runtime in wanted.runtimes):
        hold_scores(model)
    return windows.facts()


def _require_meant(model: ir.Model, recipe: Recipe) -> None:
    """Every exception of a scheme means a weight of its own, and layers that there are: others would be left out in
    silence."""
    scheme = None if recipe.quantize == "none" else recipe.scheme()
    sites = [site for site in map(site_of, model.graph) if site is not None and site.role]
    if not isinstance(scheme, WeightOnly) or not sites:
        return
    roles = {TABLE, *(role for site in sites for role, _ in site.parts())}
    inner = [role.split(".", 2) for role in roles if role.startswith("layers.")]
    last_layer = max((int(layer) for _, layer, _ in inner), default=-1)
    left = set(roles)
    for pattern, _ in scheme.exceptions:
        if any(last > last_layer or first > last for first, last in layers_named(pattern)):
            raise OnnxGptError(
                "scheme-invalid",
                f"mixed names {pattern!r}, and this model has layers 0 to {last_layer}",
                "name layers that there are, the lower end of a span first: layers.0-1.ffn.down=8",
                exit=Exit.USAGE,
            )
        if not any(fits(role, pattern) for role in roles):
            maps = sorted({name for _, _, name in inner})
            raise OnnxGptError(
                "scheme-invalid",
                f"mixed names {pattern!r}, and this model has no such weight",
                f"its layers have {', '.join(maps)}; the embedding and head are {TABLE!r}",
                exit=Exit.USAGE,
            )
        if not any(fits(role, pattern) for role in left):
            raise OnnxGptError(
                "scheme-invalid",
                f"mixed names {pattern!r}, and what comes before it has all of its weights: the first that fits counts",
                "name what is special before what is general",
                exit=Exit.USAGE,
            )
        left = {role for role in left if not fits(role, pattern)}


def quantize(exported: Exported, recipe: Recipe, coders: Coders) -> dict[str, int]:
    """Replace float weights by codes, lazily. Gives how many uses of a weight took which format."""
    scheme = None if recipe.quantize == "none" else recipe.scheme()
    if scheme is None or isinstance(scheme, Floats | Dynamic):
        return {}
    if not any(ROLE in node.metadata_props for node in exported.model.graph):
        raise unsupported(
            "module-quantize",
            "the weights of this graph have no roles, by which a scheme speaks of them",
            "use --quantize none, or save the model as a checkpoint of a known family",
        )
    done = quantize_weights(exported.model, scheme, coders)
    return dict(collections.Counter(map(_format, done)))


def _format(treatment: Treatment) -> str:
    if treatment.bits is None:
        return f"float32: {treatment.reason}"
    minimum = " with minimum" if treatment.minimum else ""
    return f"{treatment.bits} bits, blocks of {treatment.block_size}{minimum}"


def graph_facts(exported: Exported) -> GraphFacts:
    """Nodes of the graph as it is written."""
    model = exported.model
    ops = collections.Counter(f"{n.domain}::{n.op_type}" if n.domain else n.op_type for n in model.graph)
    bodies = {identifier: len(function) for identifier, function in model.functions.items()}
    inlined = sum(bodies.get(node.op_identifier(), 1) for node in model.graph)
    return GraphFacts(nodes=sum(ops.values()), inlined_nodes=inlined, ops=dict(ops.most_common()))
