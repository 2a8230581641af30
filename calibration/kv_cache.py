"""An int8 key/value cache: what each channel of it needs to hold, and attention that reads and writes codes.

    K̂ = s · round(K / s),  s = absmax / 127  for each head and channel, keys after their rotation to any place

onnxruntime's GroupQueryAttention rounds keys and values as it appends them and multiplies by the codes, so the cache
takes a quarter of the memory. Scales are constants of the graph: they come from the keys and values of a calibration
text, keys as they would be anywhere in the context (`calibration.rotary_reach`). Channels are the axis to keep apart:
a few channels of the keys are large in every token (Hooper et al. 2024, KVQuant; Liu et al. 2024, KIVI), and rotation
leaves a pair of channels its size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Self

import numpy as np
import onnx_ir as ir

from calibration.int8 import scale_of
from calibration.rotary_reach import Rotation, reach, rotation_of
from calibration.statistics.hessian import require_finite
from exporter.errors import unsupported
from graph_passes.matching import MICROSOFT, initializer, role_of

BITS = 8
SINK = 11
SCALES = (12, 13)
"""Inputs of GroupQueryAttention that are the sinks of heads, and the scales of keys and of values."""
PAST = {1: 3, 2: 4}
"""The past input that belongs to each present output of GroupQueryAttention."""


@dataclasses.dataclass(frozen=True)
class CacheRanges:
    """Largest size that each channel of a cache has taken so far, by the output's name; a commutative monoid.

    Attributes:
        largest: float32 ``[K, D]`` by name, ``present.3.key``.
        tokens: how many tokens were seen.
    """

    largest: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    tokens: int = 0

    def add(self, presents: Mapping[str, np.ndarray], rotations: Mapping[str, Rotation]) -> Self:
        """With the caches of one more batch.

        Args:
            presents: ``[B, K, T, D]`` by name, every token of them real, from the first place on.
            rotations: of those that hold rotated keys.
        """
        batch, _, length, _ = next(iter(presents.values())).shape
        sizes = {n: reach(a, rotations[n]) if n in rotations else np.abs(a) for n, a in presents.items()}
        seen = {name: size.max(axis=(0, 2)) for name, size in sizes.items()}
        return self.merge(dataclasses.replace(self, largest=seen, tokens=batch * length))

    def merge(self, other: Self) -> Self:
        """What both have seen together."""
        names = self.largest.keys() | other.largest.keys()
        zero = np.float32(0)
        largest = {n: np.maximum(self.largest.get(n, zero), other.largest.get(n, zero)) for n in names}
        return dataclasses.replace(self, largest=largest, tokens=self.tokens + other.tokens)

    def scales(self) -> dict[str, np.ndarray]:
        """Float32 ``[1, K, 1, D]`` by name; 1 for a channel that was always zero.

        Raises:
            OnnxGptError: ``activations-not-finite``.
        """
        for name, largest in self.largest.items():
            require_finite(largest, name)
        return {name: scale_of(largest)[None, :, None, :] for name, largest in self.largest.items()}


def rotations_of(model: ir.Model) -> dict[str, Rotation]:
    """How the keys of each cache are turned, by the cache's name; caches whose keys are not, left out.

    Raises:
        OnnxGptError: ``cannot-quantize-cache``.
    """
    nodes = attentions_with_cache(model)
    found = {str(node.outputs[1].name): rotation_of(node) for node in nodes}
    return {name: rotation for name, rotation in found.items() if rotation is not None}


def attentions_with_cache(model: ir.Model) -> list[ir.Node]:
    """The GroupQueryAttention nodes of a graph whose cache is float32, every one of which can take codes.

    Raises:
        OnnxGptError: ``cannot-quantize-cache`` where a cache is kept by anything else, or there is none.
    """
    presents = [value for value in model.graph.outputs if str(value.name).startswith("present.")]
    makers = {value: value.producer() for value in presents}
    others = {value: node for value, node in makers.items() if node is None or not _is_group_query(node)}
    if not presents or others:
        held = [f"{value.name}: {role_of(node) if node else 'no node'}" for value, node in others.items()]
        raise unsupported(
            "cannot-quantize-cache",
            "the graph has no key/value cache"
            if not presents
            else "only GroupQueryAttention keeps an int8 cache, and here another operator keeps it",
            "leave the cache in float; GroupQueryAttention takes heads of a multiple of 8 channels",
            tuple(held),
        )
    return list(dict.fromkeys(node for node in makers.values() if node is not None))


def quantize_cache(model: ir.Model, ranges: CacheRanges) -> int:
    """Let every attention of a graph keep its keys and values as int8, in place; inputs and outputs change type.

    After an error the graph is as it was.

    Returns:
        How many attentions there are.

    Raises:
        OnnxGptError: see `attentions_with_cache`.
    """
    nodes = attentions_with_cache(model)
    scales = ranges.scales()
    for node in nodes:
        inputs = [*node.inputs, *[None] * (SCALES[-1] + 1 - len(node.inputs))]
        for at, (present, past) in zip(SCALES, PAST.items(), strict=True):
            output, source = node.outputs[present], inputs[past]
            assert source is not None
            tensor = ir.tensor(scales[str(output.name)], name=f"{role_of(node)}.{_kind(output)}_scale")
            inputs[at] = initializer(model.graph, tensor)
            output.type = source.type = ir.TensorType(ir.DataType.INT8)
        node.resize_inputs(len(inputs))
        for i, value in enumerate(inputs):
            node.replace_input_with(i, value)
        for which in ("k", "v"):
            node.attributes[f"{which}_quant_type"] = ir.AttrString(f"{which}_quant_type", "PER_CHANNEL")
        node.attributes["kv_cache_bit_width"] = ir.AttrInt64("kv_cache_bit_width", BITS)
    return len(nodes)


def hold_scores(model: ir.Model) -> None:
    """Let attention with an int8 cache compute all scores of a run before their softmax, in place.

    onnxruntime then multiplies by codes of values as they are, where its kernel that goes by tiles widens them first:
    1.1 to 1.2 times as fast a step (docs/experiments.md), for S·T scores of each head, so that prompts should come in
    pieces. It does so where a head has a sink (a score that takes part in the softmax alone): one of −∞ takes nothing.
    """
    for node in attentions_with_cache(model):
        heads = node.attributes["num_heads"].as_int()
        name = f"attention.no_sink.{heads}"
        known = model.graph.initializers.get(name)
        sink = ir.tensor(np.full(heads, -np.inf, np.float32), name=name)
        node.replace_input_with(SINK, known or initializer(model.graph, sink))


def _kind(present: ir.Value) -> str:
    """``key`` or ``value``."""
    return str(present.name).rpartition(".")[2]


def _is_group_query(node: ir.Node) -> bool:
    return (node.domain, node.op_type) == (MICROSOFT, "GroupQueryAttention")
