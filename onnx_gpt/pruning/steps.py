"""What is done to a checkpoint between reading and writing it: zeros, or structures taken out, by a pruning recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calibration.data.documents import files_of
from calibration.data.windows import Encoder
from calibration.pruning.chain import Chain
from calibration.pruning.model import PIPELINE, Described, Runner
from calibration.pruning.sensitivity import ffn_sizes, shares
from calibration.pruning.sequential import prune_weights
from calibration.pruning.sparsity import invalid
from calibration.pruning.structure import magnitude
from calibration.pruning.structure.dropping import dropped
from calibration.pruning.structure.narrowing import ATTENTION, narrowed, units_of
from calibration.pruning.structure.vocabulary import kept_tokens, remapped, remapped_ids, with_vocabulary
from calibration.pruning.weights import method_of
from exporter.build import build
from exporter.checkpoint import Checkpoint
from exporter.errors import unsupported
from exporter.families import describe
from exporter.resizing import resized_config
from exporter.variants import LayerSizes, sizes_of
from exporter.writing import stored_weights
from graph_passes import run_pipeline
from onnx_gpt.optimizing.calibrating import documents
from onnx_gpt.progress import Progress
from onnx_gpt.pruning.recipe import MAGNITUDE, PruneRecipe
from onnx_gpt.pruning.report import ZEROS
from onnx_gpt.report import Stages

WIDE, MULTIPLE, NARROW_MULTIPLE = 512, 64, 8
"""Feed-forwards and vocabularies of `WIDE` and more keep to multiples of `MULTIPLE`, which kernels like; smaller
ones to 8."""


@dataclasses.dataclass(frozen=True)
class Pruned:
    """A checkpoint, and what the report says of how it came to be."""

    checkpoint: Checkpoint
    facts: dict[str, Any]


def pruned(
    opened: Checkpoint,
    model: Described,
    recipe: PruneRecipe,
    tokens: np.ndarray | None,
    folder: Path,
    stages: Stages,
    progress: Progress,
) -> Pruned:
    """Make a checkpoint smaller or sparser.

    Args:
        tokens: calibration text, int64 ``[N, S]``; None where the recipe reads none.
        folder: scratch; new matrices lie in it until the checkpoint has been written.
    """
    if recipe.structured is None:
        return _sparse(opened, model, recipe, tokens, folder, stages, progress)
    return _structured(opened, model, recipe, tokens, folder, stages, progress)


def _sparse(
    opened: Checkpoint,
    model: Described,
    recipe: PruneRecipe,
    tokens: np.ndarray | None,
    folder: Path,
    stages: Stages,
    progress: Progress,
) -> Pruned:
    wanted = [recipe.wanted_sparsity] * len(model.decoder.layers)
    if recipe.searches and tokens is not None:
        with stages.stage("search"):
            runner = Runner(folder / "parts", tokens.shape[1])
            chain = Chain(model, runner, tokens[: recipe.probe])
            wanted = shares(model, chain, runner, recipe.wanted_sparsity.share, progress.advance)
            del chain
    with stages.stage("prune"):
        graph = build(
            model.decoder, model.weights, context_length=None if tokens is None else tokens.shape[1]
        )
        run_pipeline(graph, PIPELINE, verify=False)
        method = method_of(recipe.resolved_method)
        text = tokens if method.READS_TEXT else None
        changed = prune_weights(graph, method, wanted, text, folder, progress.advance)
    weights = stored_weights(model.decoder, {**model.weights, **changed})
    facts = {"shares": tuple(one.share for one in wanted), "notes": (ZEROS,)}
    return Pruned(dataclasses.replace(opened, weights=weights), facts)


def _structured(
    opened: Checkpoint,
    model: Described,
    recipe: PruneRecipe,
    tokens: np.ndarray | None,
    folder: Path,
    stages: Stages,
    progress: Progress,
) -> Pruned:
    """Whole layers first, then heads and neurons of what is left, tokens last."""
    wanted = recipe.structures
    facts: dict[str, Any] = {}
    kept = list(range(len(model.decoder.layers)))
    whole = model
    if wanted.layers and tokens is not None:
        with stages.stage("layers"):
            count = _layers(wanted.layers, len(kept))
            chain = Chain(model, Runner(folder / "parts", tokens.shape[1]), tokens[: recipe.probe])
            gone = dropped(chain, count, progress.advance)
            del chain
        facts["dropped"] = tuple(sorted(gone))
        kept = [i for i in kept if i not in gone]
        model = model.without(gone)
    if wanted.narrows or wanted.layers:
        sizes = _sizes(model, recipe, tokens, folder, stages, progress)
        with stages.stage("fit"):
            if recipe.resolved_method == MAGNITUDE or tokens is None:
                model = magnitude.narrowed(model, sizes)
            else:
                model = narrowed(whole, kept, sizes, tokens, folder, progress.advance)
        facts["layers"] = tuple(sizes)
    files = dict(opened.files)
    if wanted.vocab:
        with stages.stage("vocabulary"):
            kept_ids = kept_tokens(
                _tokenizer(opened),
                opened.config,
                _used(opened, recipe),
                whole.decoder.vocab_size,
                _multiple(whole.decoder.vocab_size),
            )
            model = with_vocabulary(model, kept_ids)
            files = remapped(opened.files, kept_ids)
            opened = dataclasses.replace(opened, config=remapped_ids(opened.config, kept_ids))
        facts["vocabulary"] = len(kept_ids.ids)
    final = [sizes_of(layer) for layer in model.decoder.layers]
    config = resized_config(opened, final, kept=kept, vocab=model.decoder.vocab_size)
    shaped = dataclasses.replace(opened, config=config, files=files)
    return Pruned(dataclasses.replace(shaped, weights=stored_weights(describe(shaped), model.weights)), facts)


def _layers(wanted: float, have: int) -> int:
    count = round(wanted) if wanted >= 1 else max(1, round(wanted * have))
    if not 0 < count < have:
        raise invalid(f"{count} of {have} layers cannot go", "ask for fewer, or for a larger share")
    return count


def _multiple(size: int) -> int:
    return MULTIPLE if size >= WIDE else NARROW_MULTIPLE


def _sizes(
    model: Described,
    recipe: PruneRecipe,
    tokens: np.ndarray | None,
    folder: Path,
    stages: Stages,
    progress: Progress,
) -> list[LayerSizes]:
    """The sizes of all layers: as many heads of each, feed-forwards by the search or as much of each."""
    wanted, layers = recipe.structures, model.decoder.layers
    sizes = [_with_heads(sizes_of(layer), units_of(layer, ATTENTION)[0], wanted.heads) for layer in layers]
    if not wanted.ffn:
        return sizes
    multiple = _multiple(sizes[0].ffn)
    if recipe.searches and tokens is not None:
        with stages.stage("search"):
            runner = Runner(folder / "parts", tokens.shape[1])
            apart = min(recipe.probe, len(tokens) // 2)
            chain = Chain(model, runner, tokens[:apart])
            found: Sequence[int] = ffn_sizes(
                model,
                chain,
                runner,
                tokens[apart:],
                wanted.ffn,
                multiple,
                folder / "probe",
                progress.advance,
            )
    else:
        found = [max(1, round((1 - wanted.ffn) * size.ffn / multiple)) * multiple for size in sizes]
    return [size.model_copy(update={"ffn": ffn}) for size, ffn in zip(sizes, found, strict=True)]


def _with_heads(size: LayerSizes, units: int, share: float) -> LayerSizes:
    gone = round(share * units)
    if share and not 0 < gone < units:
        raise invalid(
            f"{share:g} of {units} heads, or groups that share keys and values, is {gone}",
            f"ask for a share of {1 / units:.2f} or more that leaves one",
        )
    left = units - gone
    if size.kv_heads == 1:
        return size.model_copy(update={"heads": left})
    return size.model_copy(update={"heads": size.heads // units * left, "kv_heads": left})


def _tokenizer(opened: Checkpoint) -> bytes:
    if "tokenizer.json" not in opened.files:
        raise unsupported(
            "vocabulary-unknown", "the model has no tokenizer.json", "drop vocab from --structured"
        )
    return opened.files["tokenizer.json"]


def _used(opened: Checkpoint, recipe: PruneRecipe) -> list[int]:
    """The token ids of the whole calibration text."""
    assert recipe.calibration is not None
    encoder = Encoder(_tokenizer(opened), describe(opened).vocab_size)
    used = set(encoder.prefix)
    for document in documents(opened, files_of(recipe.calibration)):
        for ids in encoder.encode(document):
            used.update(np.unique(ids).tolist())
    return sorted(used)
