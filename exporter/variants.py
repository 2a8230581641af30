"""Decoders that their family's configuration cannot describe: layers with sizes of their own.

A family has one feed-forward size and one number of heads for all layers. A pruned decoder may have others, layer
by layer. Its ``config.json`` is the family's own, of the ordinary model that it is a part of, with one more
section:

    "model_type": "onnx_gpt_variant",
    "onnx_gpt_variant": {"model_type": "llama", "layers": [{"ffn": 1152, "heads": 9, "kv_heads": 3}, …]}

Other programs refuse the model type by name, and so nobody runs it as what it is not. Filled up with zeros, its
weights are an ordinary checkpoint of the same function (`ordinary`): a neuron whose output map is zero adds
nothing, nor does a head. This is the only place that knows the section; every family has variants through it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pydantic

from exporter.config import Size, invalid
from exporter.decoder import Attention, Decoder, FeedForward, Layer, Linear, Part
from exporter.errors import unsupported
from exporter.weights import Weight

KEY = "onnx_gpt_variant"
"""The section, and the model type of such a checkpoint."""


class LayerSizes(pydantic.BaseModel):
    """What a layer may have of its own: F ffn neurons, H heads, K kv heads."""

    model_config = pydantic.ConfigDict(frozen=True, strict=True, extra="forbid")
    ffn: Size
    heads: Size
    kv_heads: Size


class Variant(pydantic.BaseModel):
    """The section. ``model_type`` is the family's own."""

    model_config = pydantic.ConfigDict(frozen=True, strict=True, extra="forbid", protected_namespaces=())
    model_type: str
    layers: tuple[LayerSizes, ...]


def sizes_of(layer: Layer) -> LayerSizes:
    """The sizes of a layer as it is."""
    attention = layer.attention
    return LayerSizes(ffn=layer.ffn.up.weight.shape[0], heads=attention.heads, kv_heads=attention.kv_heads)


def variant_of(config: Mapping[str, Any]) -> Variant | None:
    """The section of a configuration; None in an ordinary one.

    Raises:
        OnnxGptError: ``config-invalid``.
    """
    if KEY not in config:
        return None
    try:
        return Variant.model_validate_json(json.dumps(config[KEY]))
    except (ValueError, TypeError) as error:
        raise invalid(f"the section {KEY} of config.json is malformed", str(error)) from error


def ordinary_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The family's own configuration: the same without the section."""
    variant = variant_of(config)
    plain = {key: value for key, value in config.items() if key != KEY}
    return plain if variant is None else plain | {"model_type": variant.model_type}


def with_section(config: Mapping[str, Any], layers: Sequence[LayerSizes]) -> dict[str, Any]:
    """An ordinary configuration with the section."""
    variant = Variant(model_type=str(config.get("model_type", "")), layers=tuple(layers))
    return {**config, "model_type": KEY, KEY: variant.model_dump(mode="json")}


def resized(decoder: Decoder, config: Mapping[str, Any]) -> Decoder:
    """An ordinary decoder with the sizes that a configuration's section states; as it is where there is none.

    Raises:
        OnnxGptError: ``config-invalid`` for sizes beyond those of the ordinary decoder.
    """
    variant = variant_of(config)
    if variant is None:
        return decoder
    if len(variant.layers) != len(decoder.layers):
        raise invalid(
            f"the section {KEY} of config.json contradicts the rest",
            f"it has {len(variant.layers)} layers where the model has {len(decoder.layers)}",
        )
    layers = tuple(
        with_sizes(layer, sizes, i)
        for i, (layer, sizes) in enumerate(zip(decoder.layers, variant.layers, strict=True))
    )
    return dataclasses.replace(decoder, layers=layers)


def with_sizes(layer: Layer, sizes: LayerSizes, i: int = 0) -> Layer:
    """A layer that has lost its last neurons and heads; i is its number in an error.

    Raises:
        OnnxGptError: ``config-invalid`` for more than it has, or heads that its KV heads do not share evenly;
            ``variant-impossible`` (exit 3) for fewer heads where none can leave without changing the others.
    """
    whole = sizes_of(layer)
    if sizes.heads != whole.heads and layer.attention.keeps_heads:
        raise unsupported(
            "variant-impossible",
            f"layer {i} cannot lose heads: {layer.attention.keeps_heads}",
            "keep all heads of this family; neurons and layers can go",
        )
    fits = sizes.ffn <= whole.ffn and sizes.heads <= whole.heads
    shared = whole.kv_heads == sizes.kv_heads == 1  # all heads read the one there is, however many they are
    if not fits or not (shared or sizes.heads * whole.kv_heads == whole.heads * sizes.kv_heads):
        raise invalid(
            f"the section {KEY} of config.json contradicts the rest",
            f"layer {i} is {sizes!r} in a model of {whole!r}",
        )
    attention, ffn = layer.attention, layer.ffn
    heads, kv_heads = sizes.heads * attention.head_dim, sizes.kv_heads * attention.head_dim
    q, k, v = _rows([(attention.q, heads), (attention.k, kv_heads), (attention.v, kv_heads)])
    changed: Attention = dataclasses.replace(
        attention,
        heads=sizes.heads,
        kv_heads=sizes.kv_heads,
        q=q,
        k=k,
        v=v,
        o=_columns(attention.o, heads),
    )
    if ffn.gate is None:
        (up,), gate = _rows([(ffn.up, sizes.ffn)]), None
    else:
        gate, up = _rows([(ffn.gate, sizes.ffn), (ffn.up, sizes.ffn)])
    fed: FeedForward = dataclasses.replace(ffn, up=up, gate=gate, down=_columns(ffn.down, sizes.ffn))
    return dataclasses.replace(layer, attention=changed, ffn=fed)


def _columns(linear: Linear, count: int) -> Linear:
    weight = dataclasses.replace(linear.weight, shape=(linear.weight.shape[0], count))
    return dataclasses.replace(linear, weight=weight)


def _rows(linears: Sequence[tuple[Linear, int]]) -> list[Linear]:
    """The first rows of some maps; those that share a tensor share a smaller one."""
    weights = _first([(linear.weight, count) for linear, count in linears])
    biases = _first([(linear.bias, count) for linear, count in linears if linear.bias is not None])
    return [Linear(weights.pop(0), None if linear.bias is None else biases.pop(0)) for linear, _ in linears]


def _first(parts: Sequence[tuple[Part, int]]) -> list[Part]:
    """The first ``count`` rows of each part.

    Runs of rows of a tensor that several parts share stay in their order and move up to where those before them
    end.
    """
    kept = [(part, count, list(_cut(part.rows, count))) for part, count in parts]
    totals: dict[str, int] = {}
    moved: dict[tuple[str, int], int] = {}
    for name, (start, stop) in sorted((part.name, run) for part, _, runs in kept for run in runs):
        moved[name, start] = totals.get(name, 0)
        totals[name] = moved[name, start] + stop - start
    first = []
    for part, count, runs in kept:
        shape = (count, *part.shape[1:])
        if part.rows is None:
            first.append(dataclasses.replace(part, shape=shape))
            continue
        whole = (totals[part.name], *part.shape[1:])
        rows = tuple((moved[part.name, a], moved[part.name, a] + b - a) for a, b in runs)
        stored = whole[::-1] if part.transposed else whole
        first.append(dataclasses.replace(part, shape=shape, stored=stored, rows=rows))
    return first


def _cut(runs: Iterable[tuple[int, int]] | None, count: int) -> Iterable[tuple[int, int]]:
    for start, stop in runs or ():
        if count > 0:
            yield start, min(stop, start + count)
        count -= stop - start


class Filled(Weight):
    """Another weight in the upper left corner of zeros."""

    def __init__(self, base: Weight, shape: tuple[int, ...]) -> None:
        self.base, self.whole = base, shape

    @property
    def shape(self) -> tuple[int, ...]:
        return self.whole

    def rows(self, start: int, stop: int) -> np.ndarray:
        filled = np.zeros((stop - start, *self.whole[1:]), np.float32)
        last = self.base.shape[0]
        if start >= last:
            return filled
        have = self.base.rows(start, min(stop, last))
        filled[(slice(len(have)), *(slice(size) for size in have.shape[1:]))] = have
        return filled


def filled(decoder: Decoder, weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """A variant's weights by role, filled up with zeros to the sizes of the ordinary decoder."""
    return {
        role: weights[role] if weights[role].shape == part.shape else Filled(weights[role], part.shape)
        for role, part in decoder.parts()
    }
