"""The main job: source → graph → passes → quantization → parity → bundle. Stages are functions from value to value."""

from __future__ import annotations

import collections
import dataclasses
import importlib.util
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from calibration.quantization.weight_only import Treatment, quantize_weights
from calibration.scheme import NAMES, RoundToNearest, scheme_of
from exporter import sources
from exporter.build import build
from exporter.checkpoint import Checkpoint, ModuleSource
from exporter.decoder import Decoder
from exporter.errors import Exit, OnnxGptError, rejected, unsupported
from exporter.families import describe, family_of
from exporter.match import match_weights
from graph_passes import PassReport, run_pipeline
from graph_passes.lint import require_no_cliffs
from onnx_gpt._version import __version__
from onnx_gpt.bundle.staging import require_absent, require_space, staged
from onnx_gpt.bundle import targets as bundle_targets
from onnx_gpt.bundle.targets import BundleFacts
from onnx_gpt.parity.candidate import Candidate
from onnx_gpt.parity.gate import DEFAULT_LIMITS, ReferenceModel, compare
from onnx_gpt.parity.text import EvaluationTokens, evaluation_tokens
from onnx_gpt.progress import Progress, Silent
from onnx_gpt.report import (
    GraphFacts,
    Limits,
    Parity,
    PassFacts,
    Report,
    SourceFacts,
    Stages,
)

MODEL, DATA, REPORT = "model.onnx", "model.onnx.data", "report.json"
WRITERS = 2
"""Threads that compute and write tensors."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The settings of one job, as they are echoed, reported and reproduced.

    Attributes:
        quantize: ``none``, ``int8``, ``int4``, or ``keep`` (a GGUF's own codes).
        block_size: columns that share a scale; the scheme's measured default where None.
        targets: runtimes to write for; several go into one folder each.
        context_length: rows of the rotary tables; the model's own where None.
        parity: compare with the reference and gate on it.
        limits: the gate's thresholds; the scheme's defaults where None.
        text: UTF-8 file to evaluate on; Python's own documentation where None.
        tokens: predicted tokens to evaluate on, at least.
    """

    quantize: str = "none"
    block_size: int | None = None
    targets: tuple[str, ...] = ("ort",)
    context_length: int | None = None
    parity: bool = True
    limits: Limits | None = None
    text: Path | None = None
    tokens: int = 2048

    def __post_init__(self) -> None:
        if self.quantize != "none" or self.block_size is not None:
            scheme_of(self.quantize, block_size=self.block_size)  # raises where they do not fit
        if not self.targets:
            raise OnnxGptError("target-unknown", "no target is named", "use --target ort", exit=Exit.USAGE)
        for name in self.targets:
            bundle_targets.target(name)

    def echo(self) -> dict[str, Any]:
        """Plain values, for people and for the report."""
        limits = self.limits or DEFAULT_LIMITS[self.quantize]
        return {
            "quantize": self.quantize,
            "block_size": self._block_size(),
            "target": ",".join(self.targets),
            "context_length": self.context_length or "the model's own",
            "parity": limits.model_dump() if self.parity else "not run",
            "text": str(self.text) if self.text else "held-out part of Python's own documentation",
            "tokens": self.tokens,
        }

    def _block_size(self) -> int | str:
        if self.quantize not in NAMES:
            return "none"
        scheme = scheme_of(self.quantize, block_size=self.block_size)
        return scheme.layers.block_size if isinstance(scheme, RoundToNearest) else "the source's own"


def optimize(
    source: str,
    out: str | Path,
    *,
    quantize: str = "none",
    block_size: int | None = None,
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
    recipe = Recipe(quantize, block_size, targets, context_length, parity, limits, text, tokens)
    return run(source, Path(out), recipe, progress or Silent())


def run(source: str, out: Path, recipe: Recipe, progress: Progress) -> Report:
    """`optimize` with its settings as one value."""
    require_absent(out)
    stages = Stages(progress.stage)
    with stages.stage("load"):
        opened = sources.load(source)
    with stages.stage("export") as facts:
        exported = export(opened, recipe)
        facts["nodes"] = len(exported.model.graph)
    with stages.stage("passes") as facts:
        pipeline = bundle_targets.target(recipe.targets[0]).PIPELINE if exported.decoder is not None else MODULE_PIPELINE
        passes = run_pipeline(exported.model, pipeline)
        facts["nodes"] = len(exported.model.graph)
    with stages.stage("quantize") as facts:
        quantized = quantize(exported, recipe)
        facts["nodes"] = len(exported.model.graph)
    require_no_cliffs(exported.model)
    bundle_facts = BundleFacts(exported.decoder, opened_config(opened), opened.files)
    extra = {name: bundle_targets.target(name).files(bundle_facts) for name in recipe.targets}
    require_space(out, len(recipe.targets) * _nbytes(exported.model))
    with staged(out) as stage:
        with stages.stage("write"):
            _save(exported.model, stage, progress)
        parity: Parity | None = None
        if recipe.parity:
            with stages.stage("parity"):
                parity = prove(opened, exported, stage / MODEL, recipe, progress)
        report = _report(source, exported, recipe, pipeline, stages, passes, quantized, stage, parity)
        _require_passed(parity)
        _lay_out(stage, extra, report)
    return report


# Export ----------------------------------------------------------------------------------------------------------

MODULE_PIPELINE = "fold, clean"
"""Passes for a graph that torch exported: what holds for any graph."""


@dataclasses.dataclass(frozen=True)
class Exported:
    """A graph and what is known of it. ``decoder`` is None for a user's own module."""

    model: ir.Model
    decoder: Decoder | None
    family: str
    parameters: int
    vocab_size: int
    module: Any = None


def export(opened: Checkpoint | ModuleSource, recipe: Recipe) -> Exported:
    """The canonical graph, its weights unread; a module's graph as torch gives it."""
    if isinstance(opened, ModuleSource):
        return _export_module(opened)
    decoder = describe(opened)
    family = family_of(opened)
    weights = match_weights(decoder, opened.weights, getattr(family, "IGNORED", ()))
    _require_tokenizer_fits(opened, decoder)
    if recipe.context_length is not None and not 0 < recipe.context_length <= decoder.context_length:
        raise rejected(
            "context-too-long",
            f"the model was trained for {decoder.context_length} tokens, {recipe.context_length} are asked for",
            "lower --context-length",
        )
    model = build(decoder, weights, context_length=recipe.context_length)
    stored = {part.name: part.stored_shape for _, part in decoder.parts()}
    parameters = sum(int(np.prod(shape, dtype=np.int64)) for shape in stored.values())
    return Exported(model, decoder, decoder.family, parameters, decoder.vocab_size)


def _export_module(opened: ModuleSource) -> Exported:
    from exporter.sources import module as module_source

    module = opened.factory().eval()
    model = module_source.export(module)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    logits = model.graph.outputs[0].shape
    vocab = logits[-1] if logits is not None else None
    if not isinstance(vocab, int):
        raise unsupported(
            "module-not-exportable", "the module's logits have no fixed last dimension", "return [B, S, V] logits"
        )
    return Exported(model, None, "module", parameters, vocab, module)


def opened_config(opened: Checkpoint | ModuleSource) -> dict[str, Any]:
    return dict(opened.config) if isinstance(opened, Checkpoint) else {"architectures": ["module"]}


def _require_tokenizer_fits(checkpoint: Checkpoint, decoder: Decoder) -> None:
    raw = checkpoint.files.get("tokenizer.json")
    if raw is None:
        return
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(raw.decode("utf-8"))
    except Exception as error:  # the library raises bare Exception for a malformed file
        raise rejected("tokenizer-invalid", f"tokenizer.json: {error}", "restore the file") from error
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if largest >= decoder.vocab_size:
        raise rejected(
            "tokenizer-too-large",
            f"the tokenizer has token id {largest}, the model has {decoder.vocab_size} rows",
            "use the tokenizer that the model was trained with",
        )


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
    done = quantize_weights(exported.model, scheme_of(recipe.quantize, block_size=recipe.block_size))
    return dict(collections.Counter(map(_format, done)))


def _format(treatment: Treatment) -> str:
    if treatment.bits is None:
        return f"float32: {treatment.reason}"
    minimum = " with minimum" if treatment.minimum else ""
    return f"{treatment.bits} bits, blocks of {treatment.block_size}{minimum}"


# Writing ---------------------------------------------------------------------------------------------------------


def _nbytes(model: ir.Model) -> int:
    tensors = (value.const_value for value in model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def _save(model: ir.Model, folder: Path, progress: Progress) -> None:
    ir.save(
        model,
        folder / MODEL,
        external_data=DATA,
        max_workers=WRITERS,
        max_in_flight_bytes=64 << 20,
        alignment=4096,
        align_threshold=4096,
        callback=lambda tensor, info: progress.advance(info.index + 1, info.total, tensor.name or ""),
    )


def _lay_out(stage: Path, extra: dict[str, dict[str, bytes]], report: Report) -> None:
    """One target fills the bundle itself, several fill a folder each."""
    if len(extra) == 1:
        folders = {name: stage for name in extra}
    else:
        folders = {name: stage / name for name in extra}
        for folder in folders.values():
            folder.mkdir()
            for name in (MODEL, DATA):
                if (stage / name).exists():
                    shutil.copyfile(stage / name, folder / name)
        for name in (MODEL, DATA):
            (stage / name).unlink(missing_ok=True)
    for name, folder in folders.items():
        for file, content in extra[name].items():
            (folder / file).write_bytes(content)
        files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        (folder / REPORT).write_text(report.model_copy(update={"files": files}).json_text(), "utf-8")


# Parity ----------------------------------------------------------------------------------------------------------


def prove(
    opened: Checkpoint | ModuleSource, exported: Exported, model: Path, recipe: Recipe, progress: Progress
) -> Parity:
    """Compare the written model with the reference, under the recipe's limits."""
    window = min(512, exported.decoder.context_length if exported.decoder else 128)
    text = evaluation_tokens(
        opened.files.get("tokenizer.json"),
        exported.vocab_size,
        tokens=recipe.tokens,
        window=window,
        path=recipe.text,
    )
    with _reference(opened, exported, recipe, progress) as reference:
        return compare(
            Candidate(model),
            reference,
            text,
            scheme=recipe.quantize,
            limits=recipe.limits or DEFAULT_LIMITS[recipe.quantize],
            greedy_tokens=min(64, window // 2),
            progress=lambda done, total: progress.advance(done, total, "windows of text"),
        )


@contextmanager
def _reference(
    opened: Checkpoint | ModuleSource, exported: Exported, recipe: Recipe, progress: Progress
) -> Iterator[ReferenceModel]:
    """PyTorch in float32; where it is not installed, our own float bundle stands in for a quantized one."""
    if all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        from exporter.reference import Reference

        yield Reference(opened if isinstance(opened, Checkpoint) else exported.module)
        return
    if recipe.quantize == "none" or isinstance(opened, ModuleSource):
        raise OnnxGptError(
            "reference-missing",
            "parity of a float bundle needs torch and transformers, which are not installed",
            "pip install 'onnx-gpt[reference]', or pass --no-parity",
            exit=Exit.ENVIRONMENT,
        )
    with tempfile.TemporaryDirectory(prefix="onnx-gpt-float-") as folder:
        float_model = export(opened, recipe).model
        run_pipeline(float_model, bundle_targets.target("ort").PIPELINE)
        _save(float_model, Path(folder), progress)
        yield FloatBundle(Candidate(Path(folder) / MODEL))


@dataclasses.dataclass(frozen=True)
class FloatBundle:
    """Our own float32 bundle in the reference's place."""

    candidate: Candidate
    name: str = "onnx-gpt float32 bundle (torch is not installed)"

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        return self.candidate.logits(tokens)

    def greedy(self, tokens: np.ndarray, count: int) -> list[int]:
        return self.candidate.greedy(tokens, count)


def _require_passed(parity: Parity | None) -> None:
    if parity is not None and parity.verdict == "fail":
        raise OnnxGptError(
            "parity-failed",
            f"the bundle is not near enough to {parity.reference}; nothing was published",
            "choose a gentler scheme, or state other limits with --max-kl, --min-top1, --max-perplexity-ratio",
            exit=Exit.PARITY,
            details=parity.failures,
        )


# Report ----------------------------------------------------------------------------------------------------------


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
    ops = collections.Counter(
        f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in exported.model.graph
    )
    return Report(
        schema="onnx-gpt/report/1",
        version=__version__,
        source=SourceFacts(uri=uri, family=exported.family, parameters=exported.parameters),
        recipe=recipe.echo(),
        pipeline=pipeline,
        stages=tuple(stages.done),
        passes=tuple(PassFacts(**dataclasses.asdict(entry)) for entry in passes),
        graph=GraphFacts(nodes=sum(ops.values()), ops=dict(ops.most_common())),
        quantization=quantized,
        files={path.name: path.stat().st_size for path in sorted(stage.iterdir())},
        parity=parity or "not run",
    )


def read_report(bundle: Path) -> dict[str, Any]:
    """A bundle's report as plain values; empty where it has none."""
    path = bundle / REPORT
    return dict(json.loads(path.read_text("utf-8"))) if path.is_file() else {}


