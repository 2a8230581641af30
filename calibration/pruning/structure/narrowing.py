"""Takes FFN neurons and heads out of a decoder, layer by layer, and fits what is left to what the whole one
computes.

Two decoders run side by side on the calibration text: the one that was given, and the pruned one, whose layers are
finished one after the other. Behind each attention and each feed-forward the output map is fitted anew: its inputs
are those of the pruned decoder, its target is what brings the pruned residual stream to where that of the whole
decoder is, so that it makes up for what all layers before it have lost, too. Where a norm stands behind a block
(Gemma 3), the target is the block's own output. What leaves goes by `channels.removal`; the maps before it lose the
rows that nobody reads any more.

A pruned decoder may have a narrower residual stream (`hidden`), and is then brought to where the whole one's is turned
to. Behind each of its norms, what the whole decoder's norm gives is fitted first, for all maps that read it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from calibration.collecting import Stream
from calibration.progress import Advance
from calibration.pruning.model import ATTENTION, BLOCKS, FFN, HALFWAY, OUT, Described, Runner, forward
from calibration.pruning.sequential import filed
from calibration.pruning.structure.channels import Removal, fitted, removal
from calibration.pruning.structure.hidden import Turn, turned_ends, turned_layer
from calibration.pruning.structure.pair import Pair, output_of
from calibration.statistics.regression import SecondMoments
from calibration.threads import single_threaded_blas
from exporter.decoder import Layer
from exporter.variants import LayerSizes, sizes_of, with_sizes
from exporter.weight_expressions import Permuted
from exporter.weights import Weight

RIDGE = 0.1
"""How firmly a map is held at what reproduces its own outputs while it makes up for those before it, of the mean
size of its inputs: what it makes up for has little to do with them, and a few thousand tokens would be learned by
heart."""


def narrowed(
    model: Described,
    kept: Sequence[int],
    sizes: Sequence[LayerSizes],
    tokens: np.ndarray,
    folder: Path,
    advance: Advance,
    turn: Turn | None = None,
) -> Described:
    """A decoder of some of the layers, with the sizes given, as near to the whole one as its maps can bring it.

    A layer after which others are gone is fitted to what the last of those gave.

    Args:
        kept: numbers of the layers that are left, rising.
        sizes: of each of them, none larger than it is.
        tokens: int64 ``[N, S]``, every one real.
        folder: scratch; fitted matrices lie in it until the checkpoint has been written.
        turn: makes the residual stream narrower.
    """
    count = len(model.decoder.layers)
    runner = Runner(folder / "parts", tokens.shape[1])
    whole, pruned = (_stream(tokens, folder / name) for name in ("whole", "pruned"))
    pair = Pair(runner, whole, pruned, turn, folder)
    done = model.without([i for i in range(count) if i not in kept])
    with single_threaded_blas():
        done = done if turn is None else turned_ends(done, turn)
        for stream, one in ((whole, model), (pruned, done)):
            forward(runner.embedding(one), stream, first=True)
        for i in range(kept[0]):
            forward(runner.layer(model, i), whole)
        for place, (i, end) in enumerate(zip(kept, [*kept[1:], count], strict=True)):
            advance(place, len(kept), f"layers.{i}")
            goals = {block: _goal(model.decoder.layers[i], block) for block in BLOCKS}
            wanted = {OUT, *goals.values(), *pair.read(model.decoder.layers[i])}
            forward(runner.layer(model, i, sorted(wanted)), whole)
            for gone in range(i + 1, end):
                forward(runner.layer(model, gone), whole, passing=wanted - {OUT})
            own = model.layer(i)
            if turn is not None:
                layer = done.decoder.layers[place]
                done = done.with_layer(place, layer, turned_layer(layer, own, turn))
            for block, goal in goals.items():
                if turn is not None:
                    done = pair.with_readers(done, place, block, own)
                moments = pair.of_output(done, place, block, goal)
                done = prune_block(done, place, block, sizes[place], moments, folder)
            forward(runner.layer(done, place), pruned)
        return done if turn is None else pair.with_head(done, model)


def _goal(layer: Layer, block: str) -> str:
    """The value of the whole decoder that a block is fitted to: the sum that it ends in, or where a norm stands
    between its own output."""
    if (layer.attention_post_norm if block == ATTENTION else layer.ffn_post_norm) is not None:
        return f"{block}.output"
    return HALFWAY if block == ATTENTION and not layer.parallel else OUT


def _stream(tokens: np.ndarray, folder: Path) -> Stream:
    folder.mkdir()
    return Stream(tokens, folder)


def prune_block(
    model: Described,
    i: int,
    block: str,
    wanted: LayerSizes,
    moments: SecondMoments,
    folder: Path,
    order: Removal | None = None,
) -> Described:
    """The decoder with one block of layer i narrowed and its output map fitted.

    Args:
        block: ``attention.o`` or ``ffn.down``.
        moments: of the output map's inputs and of its target.
        folder: where the fitted map is kept.
        order: in which inputs leave, where it is known already.
    """
    layer, weights = model.decoder.layers[i], model.layer(i)
    weight = weights[f"{block}.weight"].read().astype(np.float64)
    units, group = units_of(layer, block)
    left = units_left(layer, wanted, block)
    order = order or removal(weight, moments.inputs, group, units - left, f"layers.{i}.{block}")
    kept = order.kept(units, units - left)
    columns = channels_of(kept, group)
    near = fitted(moments.inputs, weight @ moments.inputs, columns, weight[:, columns])
    fit = fitted(moments.inputs, moments.cross, columns, near, RIDGE)
    path = folder / f"layers.{i}.{block}"
    changed: dict[str, Weight] = {f"{block}.weight": filed(fit, path.with_suffix(".o.weight"))}
    if output_of(layer, block).bias is not None:
        bias = moments.target_mean - fit @ moments.input_mean[columns]
        changed[f"{block}.bias"] = filed(bias, path.with_suffix(".o.bias"))
    if left < units:
        for role, rows in rows_of(layer, block, kept).items():
            names = (f"{role}.weight", f"{role}.bias")
            changed |= {name: Permuted(weights[name], rows) for name in names if name in weights}
    return model.with_layer(i, with_sizes(layer, _partly(layer, block, wanted), i), changed)


def units_of(layer: Layer, block: str) -> tuple[int, int]:
    """How many neurons, or heads that leave together, a block has, and how many inputs of its output map each is.

    Heads leave with all that share their keys and values; where all share the same, one by one.
    """
    attention = layer.attention
    if block == FFN:
        return layer.ffn.down.weight.shape[1], 1
    if attention.kv_heads == 1:
        return attention.heads, attention.head_dim
    return attention.kv_heads, attention.heads // attention.kv_heads * attention.head_dim


def units_left(layer: Layer, wanted: LayerSizes, block: str) -> int:
    """The units of a layer's block that sizes leave."""
    if block == FFN:
        return wanted.ffn
    return wanted.heads if layer.attention.kv_heads == 1 else wanted.kv_heads


def channels_of(units: np.ndarray, group: int) -> np.ndarray:
    """The channels of some groups of neighbours."""
    channels: np.ndarray = (units[:, None] * group + np.arange(group)).reshape(-1)
    return channels


def rows_of(layer: Layer, block: str, kept: np.ndarray) -> dict[str, np.ndarray]:
    """The rows that are still read of each map before a block's output map, by role."""
    if block == FFN:
        return dict.fromkeys(["ffn.up", *(["ffn.gate"] if layer.ffn.gate is not None else [])], kept)
    rows = {"attention.q": channels_of(kept, units_of(layer, block)[1])}
    if layer.attention.kv_heads > 1:
        rows |= dict.fromkeys(("attention.k", "attention.v"), channels_of(kept, layer.attention.head_dim))
    return rows


def _partly(layer: Layer, block: str, wanted: LayerSizes) -> LayerSizes:
    """The sizes of a layer of which one block is done."""
    if block == FFN:
        return sizes_of(layer).model_copy(update={"ffn": wanted.ffn})
    return wanted.model_copy(update={"ffn": sizes_of(layer).ffn})
