"""The configuration of a decoder with other sizes: fewer layers, narrower feed-forwards, fewer heads, a narrower
residual stream, a smaller vocabulary.

Where the family's own keys can say it, the result is an ordinary configuration; where a size differs from layer to
layer, or the family derives it from another (GPT-2's heads), it is one with the section of `exporter.variants`.
Whether the keys can say it is found out by describing what they say. A family spells its sizes in one of a few
ways, which are listed once, here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from exporter import variants
from exporter.checkpoint import Checkpoint
from exporter.decoder import Decoder, Layer
from exporter.errors import OnnxGptError, unsupported
from exporter.families import describe, family_of
from exporter.variants import LayerSizes, sizes_of

SPELLINGS: Mapping[str, tuple[str, ...]] = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "ffn": ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size"),
    "heads": ("num_attention_heads",),
    "kv_heads": ("num_key_value_heads", "num_kv_heads"),
    "head_dim": ("head_dim",),
    "hidden": ("hidden_size", "n_embd", "word_embed_proj_dim", "d_model"),
    "vocab": ("vocab_size",),
}
"""Keys of ``config.json`` by what they say. GPT-2's ``n_head``, GPT-Neo's ``num_heads`` and MPT's ``n_heads`` are not
among them: with each the size of a head would change. BLOOM, MPT and GPT-NeoX Japanese have none for the neurons, of
which there are so many for each channel."""


def key_of(checkpoint: Checkpoint, size: str) -> str | None:
    """The key by which a checkpoint's family says a size, a key of `SPELLINGS`; None where it has none."""
    known = family_of(checkpoint).Config.model_fields
    said = [key for key in SPELLINGS[size] if key in known and known[key].annotation is not type(None)]
    return said[0] if said else None


def resized_config(
    checkpoint: Checkpoint,
    sizes: Sequence[LayerSizes],
    *,
    kept: Sequence[int] | None = None,
    hidden: int | None = None,
    vocab: int | None = None,
) -> dict[str, Any]:
    """The configuration of what is left of a decoder.

    Args:
        sizes: of each layer that is left.
        kept: numbers of the layers that are left, rising; all by default.
        hidden: channels that are left of the residual stream.
        vocab: rows that are left of the embedding.

    Raises:
        OnnxGptError: ``variant-impossible`` (exit 3) where what is left would not be what was pruned: a family that
            scales its scores by the number of the layer, say.
    """
    before = describe(checkpoint)
    layers = [before.layers[i] for i in (range(len(before.layers)) if kept is None else kept)]
    config = family_of(checkpoint).Config.respelled(variants.ordinary_config(checkpoint.config))
    config[_required(checkpoint, "layers")] = len(layers)
    config[_required(checkpoint, "vocab")] = vocab or before.vocab_size
    if len(layers) < len(before.layers):
        keys = family_of(checkpoint).Config.model_fields
        said = [_kind(layer) for layer in layers]
        config |= {key: [of[key] for of in said] for key in said[0].keys() & keys}
    if (inner := key_of(checkpoint, "ffn")) is not None:
        config[inner] = max(size.ffn for size in sizes)
    if hidden is None or hidden == before.hidden_size:
        whole = _with_heads(checkpoint, config, sizes)
    else:
        whole = _with_hidden(checkpoint, config, sizes[0], hidden)
    described = describe(dataclasses.replace(checkpoint, config=whole))
    if [sizes_of(layer) for layer in described.layers] != list(sizes):
        whole = variants.with_section(whole, sizes)
        described = describe(dataclasses.replace(checkpoint, config=whole))
    _require_same(layers, described)
    return whole


def _with_heads(
    checkpoint: Checkpoint, config: dict[str, Any], sizes: Sequence[LayerSizes]
) -> dict[str, Any]:
    """The configuration with the heads that all layers have, where the family can say it without resizing a
    head."""
    head_dim = describe(checkpoint).layers[0].attention.head_dim
    values = {"heads": sizes[0].heads, "kv_heads": sizes[0].kv_heads, "head_dim": head_dim}
    keys = {size: key_of(checkpoint, size) for size in values}
    alike = len({(size.heads, size.kv_heads) for size in sizes}) == 1
    if sizes_of(describe(checkpoint).layers[0]).heads == sizes[0].heads or not alike or None in keys.values():
        return config
    said = config | {str(keys[size]): value for size, value in values.items()}
    try:
        layers = describe(dataclasses.replace(checkpoint, config=said)).layers
    except OnnxGptError:  # a family that derives the size of a head refuses to be told it
        return config
    same = all((one.attention.heads, one.attention.head_dim) == (sizes[0].heads, head_dim) for one in layers)
    return said if same else config


def derives_head_size(checkpoint: Checkpoint) -> bool:
    """Whether the size of a head is that of the residual stream over their number: by a family that has no key for it,
    or that takes no other (Helium)."""
    field = family_of(checkpoint).Config.model_fields.get("head_dim")
    if field is None or field.annotation is type(None):
        return True
    other = {"head_dim": 2 * describe(checkpoint).layers[0].attention.head_dim}
    try:
        describe(dataclasses.replace(checkpoint, config=variants.ordinary_config(checkpoint.config) | other))
    except OnnxGptError:
        return True
    return False


def _with_hidden(
    checkpoint: Checkpoint, config: dict[str, Any], size: LayerSizes, hidden: int
) -> dict[str, Any]:
    """The configuration with another width, and with the heads that all layers have, of the size that they had."""
    known, before = family_of(checkpoint).Config.model_fields, describe(checkpoint)
    values = {"hidden": hidden, "heads": size.heads, "kv_heads": size.kv_heads}
    values["fold"] = -(-size.ffn // hidden)
    if not derives_head_size(checkpoint):
        values["head_dim"] = before.layers[0].attention.head_dim
    spelled = {**SPELLINGS, "heads": (*SPELLINGS["heads"], "n_head", "num_heads", "n_heads")}
    spelled["fold"] = ("intermediate_multiple_size",)  # GPT-NeoX Japanese: neurons for each channel
    said = config | {
        key: value
        for what, value in values.items()
        for key in spelled[what]
        if key in known and known[key].annotation is not type(None)
    }
    described = describe(dataclasses.replace(checkpoint, config=said))
    if (described.hidden_size, described.embedding_scale) != (hidden, before.embedding_scale):
        raise unsupported(
            "variant-impossible",
            f"a {before.family} of {hidden} channels would scale its embeddings otherwise, or cannot be said",
            "keep all channels of this family",
        )
    return said


def _kind(layer: Layer) -> dict[str, Any]:
    """What configurations say of each layer by its number, where families have layers of several kinds."""
    attention = layer.attention
    everything = attention.window is None
    kind = "global" if everything else "local"
    return {
        "layer_types": "full_attention" if everything else "sliding_attention",
        "no_rope_layers": int(attention.rope is not None),
        "attention_layers": kind,
        "attention_types": [[kind], 1],
    }


def _required(checkpoint: Checkpoint, size: str) -> str:
    key = key_of(checkpoint, size)
    if key is None:
        raise unsupported(
            "variant-impossible",
            f"the family of {checkpoint.architecture} has no key for its number of {size}",
            "describe it in exporter/resizing.py",
        )
    return key


def _require_same(layers: Sequence[Layer], described: Decoder) -> None:
    """Layers that have moved up must be what they were but for their sizes and the names of their tensors."""
    for i, (was, now) in enumerate(zip(layers, described.layers, strict=True)):
        if _nature(was) != _nature(now):
            raise unsupported(
                "variant-impossible",
                f"layer {i} of what is left would compute something else: its attention depends on its place",
                "keep all layers of this family",
                (f"was {_nature(was)}", f"would be {_nature(now)}"),
            )


def _nature(layer: Layer) -> tuple[object, ...]:
    attention, ffn = layer.attention, layer.ffn
    # GPT-NeoX Japanese has one bias, in its last layer.
    own = (attention.scale, attention.window, attention.softcap, attention.head_dim, attention.o.bias is None)
    return (*own, attention.rope, attention.alibi, ffn.activation, ffn.gate is None, layer.parallel)
