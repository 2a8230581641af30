"""Layers, heads, neurons, channels and tokens go; shapes shrink, and what is left is fitted to what was."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from calibration.data.documents import files_of
from calibration.data.windows import Encoder
from calibration.pruning.model import ATTENTION, Described
from calibration.pruning.sensitivity import ffn_sizes
from calibration.pruning.sparsity import invalid
from calibration.pruning.structure import magnitude
from calibration.pruning.structure.dropping import dropped
from calibration.pruning.structure.hidden import Turn, energy_of, require_turnable, turn_of
from calibration.pruning.structure.narrowing import narrowed, units_of
from calibration.pruning.structure.vocabulary import (
    Kept,
    kept_tokens,
    remapped,
    remapped_ids,
    with_vocabulary,
)
from calibration.threads import single_threaded_blas
from exporter.checkpoint import Checkpoint
from exporter.decoder import Layer
from exporter.errors import unsupported
from exporter.families import describe
from exporter.resizing import derives_head_size, resized_config
from exporter.variants import LayerSizes, sizes_of, with_sizes
from exporter.writing import stored_weights
from onnx_gpt.optimizing.calibrating import documents
from onnx_gpt.pruning.recipe import MAGNITUDE, PruneRecipe, Structures
from onnx_gpt.pruning.task import Pruned, Task

WIDE, MULTIPLE, NARROW_MULTIPLE = 512, 64, 8
"""Feed-forwards, residual streams and vocabularies of `WIDE` and more keep to multiples of `MULTIPLE`, which kernels
like; smaller ones to 8."""


def without_structures(task: Task) -> Pruned:
    """The checkpoint without what the recipe takes out: whole layers first, then heads, neurons and channels of what is
    left, tokens last."""
    model, opened = task.model, task.opened
    wanted = resolved(opened, task.recipe.structures)
    facts: dict[str, object] = {}
    kept = list(range(len(model.decoder.layers)))
    if wanted.layers:
        gone = _dropped(task)
        facts["dropped"] = tuple(sorted(gone))
        kept = [i for i in kept if i not in gone]
        model = model.without(gone)
    if wanted.narrows or wanted.layers:
        sizes = _sizes(task, model, wanted)
        width = hidden_left(opened, wanted, sizes[0])
        turn = None if width is None else _turn(task, width)
        with task.stages.stage("fit"):
            if task.recipe.resolved_method == MAGNITUDE or task.tokens is None:
                model = magnitude.narrowed(model, sizes)
            else:
                model = narrowed(
                    task.model, kept, sizes, task.tokens, task.folder, task.progress.advance, turn
                )
        facts |= {"layers": tuple(sizes), "hidden": width}
    if wanted.vocab:
        with task.stages.stage("vocabulary"):
            left = _used(opened, task.recipe)
            model = with_vocabulary(model, left)
            opened = dataclasses.replace(
                opened, files=remapped(opened.files, left), config=remapped_ids(opened.config, left)
            )
        facts["vocabulary"] = len(left.ids)
    decoder = model.decoder
    final = [sizes_of(layer) for layer in decoder.layers]
    config = resized_config(opened, final, kept=kept, hidden=decoder.hidden_size, vocab=decoder.vocab_size)
    shaped = dataclasses.replace(opened, config=config)
    return Pruned(dataclasses.replace(shaped, weights=stored_weights(describe(shaped), model.weights)), facts)


def _dropped(task: Task) -> list[int]:
    count = layers_gone(task.recipe.structures, len(task.model.decoder.layers))
    with task.stages.stage("layers"):
        chain = task.chain(task.model, task.runner(), task.recipe.probe)
        return dropped(chain, count, task.progress.advance)


def layers_gone(wanted: Structures, have: int) -> int:
    """How many layers go.

    Raises:
        OnnxGptError: ``prune-invalid`` (exit 2) where none would be left.
    """
    count = round(wanted.layers) if wanted.layers >= 1 else max(1, round(wanted.layers * have))
    if not 0 < count < have:
        raise invalid(f"{count:.3g} of {have} layers cannot go", "ask for fewer")
    return count


def equal_sizes(layers: Sequence[Layer], wanted: Structures) -> list[LayerSizes]:
    """The sizes of all layers, as many heads and as much of the feed-forward gone from each."""
    sizes = [_with_heads(sizes_of(layer), units_of(layer, ATTENTION)[0], wanted.heads) for layer in layers]
    for i, (layer, size) in enumerate(zip(layers, sizes, strict=True)):
        with_sizes(layer, size, i)  # refuses what a layer cannot lose
    if not wanted.ffn:
        return sizes
    multiple = _multiple(sizes[0].ffn)
    return [size.model_copy(update={"ffn": _ffn_left(size.ffn, wanted.ffn, multiple)}) for size in sizes]


def _ffn_left(have: int, share: float, multiple: int) -> int:
    """Neurons that are left of a layer's: a multiple, and fewer than there were."""
    most = (have - 1) // multiple
    if most < 1:
        raise invalid(
            f"of {have} neurons, in steps of {multiple}, none can go", "leave ffn out of --structured"
        )
    return min(most, max(1, round((1 - share) * have / multiple))) * multiple


def resolved(opened: Checkpoint, wanted: Structures) -> Structures:
    """What is taken out, with the heads that leave with hidden channels where a family has as many as fit.

    Raises:
        OnnxGptError: ``prune-invalid`` (exit 2) where heads are asked for, too.
    """
    if not wanted.hidden or not derives_head_size(opened):
        return wanted
    if wanted.heads:
        raise invalid(
            "the heads of this family are as many as fit into its width: they leave with hidden channels",
            "give heads or hidden",
        )
    return dataclasses.replace(wanted, heads=wanted.hidden)


def hidden_left(opened: Checkpoint, wanted: Structures, left: LayerSizes) -> int | None:
    """The channels of the residual stream that are left; None where all are.

    Args:
        wanted: as `resolved` gives it.
        left: the sizes of a layer afterwards.

    Raises:
        OnnxGptError: ``prune-invalid`` (exit 2) where none would go; ``variant-impossible`` (exit 3) for a decoder
            whose stream cannot be made narrower.
    """
    if not wanted.hidden:
        return None
    decoder = describe(opened)
    require_turnable(decoder)
    if derives_head_size(opened):
        return left.heads * decoder.layers[0].attention.head_dim
    have = decoder.hidden_size
    multiple = _multiple(have)
    width = max(1, round((1 - wanted.hidden) * have / multiple)) * multiple
    if width >= have:
        raise invalid(
            f"{wanted.hidden:g} of {have} channels, in steps of {multiple}, is none", "ask for a larger share"
        )
    return width


def _turn(task: Task, width: int) -> Turn:
    assert task.tokens is not None
    with task.stages.stage("energy"), single_threaded_blas():
        energy = energy_of(task.model, task.tokens, task.folder / "energy", task.progress.advance)
        return turn_of(task.model, energy, width)


def _sizes(task: Task, model: Described, wanted: Structures) -> list[LayerSizes]:
    """The sizes of all layers: feed-forwards by the search, or as much of each."""
    sizes = equal_sizes(model.decoder.layers, wanted)
    if not (wanted.ffn and task.recipe.searches):
        return sizes
    found = _searched(task, model, _multiple(sizes_of(model.decoder.layers[0]).ffn))
    return [size.model_copy(update={"ffn": ffn}) for size, ffn in zip(sizes, found, strict=True)]


def _searched(task: Task, model: Described, multiple: int) -> Sequence[int]:
    """Neurons of each layer: damage is measured on some windows, with neurons fitted on the others."""
    assert task.tokens is not None
    with task.stages.stage("search"):
        runner = task.runner()
        apart = min(task.recipe.probe, len(task.tokens) // 2)
        return ffn_sizes(
            model,
            task.chain(model, runner, apart),
            runner,
            task.tokens[apart:],
            task.recipe.structures.ffn,
            multiple,
            task.folder / "probe",
            task.progress.advance,
        )


def _with_heads(size: LayerSizes, units: int, share: float) -> LayerSizes:
    gone = round(share * units)
    if share and not 0 < gone < units:
        raise invalid(
            f"{share:g} of {units} heads, or groups that share keys and values, is {gone}",
            f"ask for a share of {1 / units:.2f} or more that leaves one"
            if units > 1
            else "leave heads out of --structured: there is one, which stays",
        )
    left = units - gone
    if size.kv_heads == 1:
        return size.model_copy(update={"heads": left})
    return size.model_copy(update={"heads": size.heads // units * left, "kv_heads": left})


def _multiple(size: int) -> int:
    return MULTIPLE if size >= WIDE else NARROW_MULTIPLE


def _used(opened: Checkpoint, recipe: PruneRecipe) -> Kept:
    """The tokens of the whole calibration text, and those that they need."""
    assert recipe.calibration is not None
    if "tokenizer.json" not in opened.files:
        raise unsupported(
            "vocabulary-unknown", "the model has no tokenizer.json", "drop vocab from --structured"
        )
    tokenizer, vocab_size = opened.files["tokenizer.json"], describe(opened).vocab_size
    encoder = Encoder(tokenizer, vocab_size)
    used = set(encoder.prefix)
    for document in documents(opened, files_of(recipe.calibration)):
        for ids in encoder.encode(document):
            used.update(np.unique(ids).tolist())
    return kept_tokens(tokenizer, opened.config, sorted(used), vocab_size, _multiple(vocab_size))
