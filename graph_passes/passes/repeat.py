"""Attention(q, k, v; past) ⇒ Attention(heads of q, repeated [past k], repeated [past v]), with the cache by Concat.

For runtimes that fuse attention with a cache of their own out of these operators, as OpenVINO does, and not out of one
that does it all: q, k and v become ``[B, H, S, D]`` before rotation, keys and values are appended to the past, and each
kv head is repeated for the query heads that read it.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graph_passes.matching import attribute, initializer, is_private, make, producer, replace, role_of
from graph_passes.outcome import NearMiss, Outcome

KIND = "fp"
INPUTS = 6
"""Of Attention: q, k, v, mask, past key and past value."""


def apply(model: ir.Model) -> Outcome:
    fired, misses = 0, []
    for node in [n for n in model.graph if n.op_type == "Attention" and n.domain == ""]:
        reason = _rewrite(model.graph, node)
        if reason:
            misses.append(NearMiss.of(node, reason))
        else:
            fired += 1
    return Outcome.of(fired, misses)


def _rewrite(graph: ir.Graph, node: ir.Node) -> str:
    """Spell out one attention; why not, where that cannot be."""
    query, key, value, mask, *pasts = [*node.inputs, None, None, None][:INPUTS]
    heads, kv_heads = attribute(node, "q_num_heads", 0), attribute(node, "kv_num_heads", 0)
    if query is None or key is None or value is None or not heads or not kv_heads:
        return "q, k and v are not [B, S, H·D]"
    if attribute(node, "is_causal", 0) or len(node.inputs) > INPUTS:
        return "it masks by itself"
    dims = [past.shape[3] for past in pasts if past is not None and past.shape is not None]
    widths = [dim for dim in dims if isinstance(dim, int)]
    if len(widths) < 2:
        return "it has no cache of a known head dim"
    spelled = _Spelled(graph, str(node.name))
    split = [spelled.split(x, count) for x, count in ((query, heads), (key, kv_heads), (value, kv_heads))]
    presents = [
        spelled.add("Concat", [past, x], w, axis=2) for past, x, w in zip(pasts, split[1:], "kv", strict=True)
    ]
    read = presents
    if heads != kv_heads:
        read = [
            spelled.repeated(present, heads, kv_heads, width, f"{w}_repeated")
            for present, width, w in zip(presents, widths, "kv", strict=True)
        ]
    kept = {name: attribute(node, name, 0.0) for name in ("scale", "softcap") if name in node.attributes}
    kept |= {"q_num_heads": heads, "kv_num_heads": heads}  # 4-D inputs have both; sizes are told by them
    attended = spelled.add("Attention", [split[0], *read, mask], "attended", role=role_of(node), **kept)
    turned = spelled.add("Transpose", [attended], "turned", perm=[0, 2, 1, 3])
    merged = spelled.add("Reshape", [turned, spelled.ints("merge", 0, 0, -1)], "merged")
    values = list(zip(node.outputs, (merged, *presents), strict=False))
    replace(node, [node, *spelled.old], spelled.new, values)
    return ""


class _Spelled:
    """New nodes in the place of one attention, and the rotations that they take over."""

    def __init__(self, graph: ir.Graph, name: str) -> None:
        self.graph, self.name = graph, name
        self.new: list[ir.Node] = []
        self.old: list[ir.Node] = []

    def split(self, value: ir.Value, heads: int) -> ir.Value:
        """``[B, S, H·D]`` ⇒ ``[B, H, S, D]``; a rotation comes after it."""
        rotation = producer(value, "RotaryEmbedding")
        if rotation is not None and not is_private(value):
            rotation = None
        source = value if rotation is None else rotation.inputs[0]
        assert source is not None
        shape = self.ints(f"heads_{heads}", 0, 0, heads, -1)
        parted = self.add("Reshape", [source, shape], f"{source.name}.heads", whole=True)
        turned = self.add("Transpose", [parted], f"{source.name}.turned", whole=True, perm=[0, 2, 1, 3])
        if rotation is None:
            return turned
        self.old.append(rotation)
        kept = {
            a: attribute(rotation, a, 0)
            for a in ("interleaved", "rotary_embedding_dim")
            if a in rotation.attributes
        }
        return self.add(
            "RotaryEmbedding", [turned, *rotation.inputs[1:]], f"{rotation.name}.turned", whole=True, **kept
        )

    def repeated(self, value: ir.Value, heads: int, kv_heads: int, width: int, what: str) -> ir.Value:
        """``[B, K, T, D]`` ⇒ ``[B, H, T, D]``, each kv head for its query heads."""
        apart = self.add("Unsqueeze", [value, self.ints("after_heads", 2)], f"{what}.apart")
        times = self.ints("times", 1, 1, heads // kv_heads, 1, 1)
        wide = self.add("Expand", [apart, times], f"{what}.wide")
        return self.add("Reshape", [wide, self.ints(f"{what}.shape", 0, heads, -1, width)], what)

    def add(
        self, op_type: str, inputs: list[ir.Value | None], what: str, *, whole: bool = False, **more: object
    ) -> ir.Value:
        node = make(op_type, inputs, what if whole else f"{self.name}.{what}", **more)  # type: ignore[arg-type]
        self.new.append(node)
        return node.outputs[0]

    def ints(self, what: str, *values: int) -> ir.Value:
        return initializer(self.graph, ir.tensor(np.array(values, np.int64), name=f"{self.name}.{what}"))
