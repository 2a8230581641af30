"""What the weights of a finished graph should be: by role, from the source alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from calibration.quantization.sites import PACKED
from exporter import alibi, sinusoids
from exporter.checkpoint import Checkpoint, Opened
from exporter.decoder import Decoder, Sinusoids
from exporter.match import matched
from exporter.weight_expressions import Stack
from exporter.weight_tensor import WeightTensor
from exporter.weights import Array, Weight
from graph_passes import run_pipeline
from graph_passes.matching import role_of
from onnx_gpt.exporting import Transform, canonical_pipeline, export

NORMS = {
    "RMSNormalization": (1, None, None),
    "SimplifiedLayerNormalization": (1, None, None),
    "LayerNormalization": (1, 2, None),
    "SkipSimplifiedLayerNormalization": (2, None, 3),
    "SkipLayerNormalization": (2, 3, 4),
}
"""Inputs that hold a norm's gain, its bias, and the bias of the product whose output it adds."""


@dataclasses.dataclass(frozen=True)
class Expected:
    """A source's weights by role, ``layers.3.ffn.down.weight``, unread.

    Attributes:
        decoder: None where the source is a graph, and no family describes it.
        mixed: whether weights were multiplied by rotations, whose sums come out otherwise for other pieces.
        corrected: whether biases make up for what rounding does on a text, which is not known here.
    """

    weights: Mapping[str, Weight]
    decoder: Decoder | None
    mixed: bool
    corrected: bool = False

    def parts(self, role: str, kind: str) -> list[tuple[str, Weight]]:
        """The weights (``kind`` is ``weight`` or ``bias``) that lie under each other in a role's, with their roles."""
        if f"{role}.{kind}" in self.weights:
            return [(role, self.weights[f"{role}.{kind}"])]
        if role == "head" and kind == "weight" and "embedding.weight" in self.weights:
            return [("embedding", self.weights["embedding.weight"])]
        stem, _, last = role.rpartition(".")
        names = [f"{stem}.{part}" for part in PACKED.get(last, ())]
        if names and all(f"{name}.{kind}" in self.weights for name in names):
            return [(name, self.weights[f"{name}.{kind}"]) for name in names]
        return []

    def rotary(self, layer: int, context: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Cosines and sines ``[context, D/2]`` of a layer, where a family describes them."""
        rope = self.decoder.layers[layer].attention.rope if self.decoder is not None else None
        if rope is None:
            return None
        steps = np.arange(context, dtype=np.float32)
        angles = np.outer(steps, np.array(rope.frequencies, np.float32))
        factor = np.float32(rope.factor)
        return np.cos(angles) * factor, np.sin(angles) * factor

    def biases(self, heads: int, context: int) -> np.ndarray | None:
        """What ALiBi adds by position ``[context, H]``, where a family describes that; by the number of heads."""
        attentions = [layer.attention for layer in self.decoder.layers] if self.decoder is not None else []
        known = [one.alibi for one in attentions if one.alibi is not None and one.heads == heads]
        return alibi.table(known[0], context) if known else None


def expected_of(
    opened: Opened, transform: Transform | None = None, context_length: int | None = None
) -> Expected:
    """What a bundle of a source should hold. Reads no weight.

    Args:
        transform: what a checkpoint's decoder goes through before its graph is built: w8a8 rotates it.
        context_length: tokens that the bundle was made for, where a graph does not say that itself.
    """
    if isinstance(opened, Checkpoint):
        weights: Mapping[str, Weight]
        decoder, weights = matched(opened)
        if transform is not None:
            decoder, weights = transform(decoder, weights)
        return Expected({**weights, **dict(_unlearned(decoder))}, decoder, transform is not None)
    exported = export(opened, context_length)
    run_pipeline(exported.model, canonical_pipeline(exported.context_length), verify=False)
    return Expected(dict(_by_role(exported.model.graph)), None, False)


def _unlearned(decoder: Decoder) -> Iterator[tuple[str, Weight]]:
    """Positions and gains of norms that nobody has learned: a graph has them all the same."""
    if isinstance(decoder.positions, Sinusoids):
        made = sinusoids.table(decoder.positions, decoder.context_length, decoder.hidden_size)
        yield "positions.weight", constant(made)
    hidden = decoder.hidden_size
    norms = {"norm": (decoder.norm, hidden), "embedding_norm": (decoder.embedding_norm, hidden)}
    for i, layer in enumerate(decoder.layers):
        attention, at = layer.attention, f"layers.{i}"
        norms |= {
            f"{at}.attention_norm": (layer.attention_norm, hidden),
            f"{at}.ffn_norm": (layer.ffn_norm, hidden),
            f"{at}.attention.q_norm": (attention.q_norm, attention.head_dim),
            f"{at}.attention.k_norm": (attention.k_norm, attention.head_dim),
        }
    for role, (norm, channels) in norms.items():
        if norm is not None and norm.weight is None:
            yield f"{role}.weight", constant(np.ones(channels))


def _by_role(graph: ir.Graph) -> Iterator[tuple[str, Weight]]:
    """Weights of a canonical graph by the roles of the nodes that read them."""
    for node in graph:
        role = role_of(node)
        for i, value in enumerate(node.inputs):
            tensor = value.const_value if value is not None else None
            if not role or value is None or not isinstance(tensor, WeightTensor):
                continue
            gain, bias, _ = NORMS.get(node.op_type, (i, None, None))
            if i in (gain, bias):
                yield f"{role}.{'weight' if i == gain else 'bias'}", tensor.weight
        product = node.outputs[0]
        for use in product.uses() if role else ():
            if use.node.op_type == "Add":
                other = use.node.inputs[1 - use.idx]
                held = other.const_value if other is not None else None
                if isinstance(held, WeightTensor) and len(held.shape) == 1:
                    yield f"{role}.bias", held.weight


def is_neutral(weight: Weight, kind: str) -> bool:
    """Whether leaving a weight out changes nothing: a bias of zeros, a gain of ones."""
    if len(weight.shape) != 1:
        return False
    values = weight.read()
    return bool((values == (0 if kind == "bias" else 1)).all())


def stacked(parts: list[tuple[str, Weight]]) -> Weight:
    """Parts under each other."""
    return parts[0][1] if len(parts) == 1 else Stack(tuple(weight for _, weight in parts))


def constant(array: np.ndarray) -> Weight:
    """A known array as a weight."""
    return Array(np.ascontiguousarray(array, np.float32))
