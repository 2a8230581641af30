"""Attention(rotary(q), rotary(k), v; causal ∧ valid) ⇒ GroupQueryAttention(q, k, v; cos, sin, seqlens_k).

GroupQueryAttention rotates, masks and appends to the cache by itself. It knows how long each row is from
``seqlens_k = Σ attention_mask − 1``, so a row's tokens are its first ones: batches are padded on the right,
and each row goes on at its own length, as if it were alone. That is the canonical graph's answer for every
token that is not padding (with a window, the canonical graph counts padding between prompt and answer as
steps of distance, this one does not). A batch padded on the left makes the graph fail
(`graph_passes.lowering.lengths`); it is never silently wrong.

``attention{padding=any}`` is right for padding on either side, as the canonical graph is, for a bias on the scores
(`graph_passes.lowering.padding`).

A bias by position (ALiBi) is one on the scores: of a row's own places, since its tokens lie side by side in the cache.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import onnx_ir as ir

from exporter.control import Control
from exporter.emitter import Emitter
from graph_passes.control.rewrite import splice
from graph_passes.lowering.causal import mask_structure, positions_of
from graph_passes.lowering.lengths import LEFT_PADDING, Lengths, guard, lengths
from graph_passes.lowering.padding import Padded, padded
from graph_passes.matching import MICROSOFT, attribute, is_private, make, producer, replace, role_of
from graph_passes.outcome import NearMiss, Outcome

KIND = "fp"


@dataclasses.dataclass(frozen=True)
class Match:
    """What GroupQueryAttention needs to know. ``rotations`` are the rotary nodes of q and k, or nothing; ``table`` is
    that of a bias by position (`Causal`)."""

    node: ir.Node
    query: ir.Value
    key: ir.Value
    value: ir.Value
    past: tuple[ir.Value | None, ...]
    attention_mask: ir.Value
    window: int | None
    rotations: tuple[ir.Node, ...]
    table: ir.Value | None


def apply(model: ir.Model, padding: Literal["right", "any"] = "right") -> Outcome:
    known: dict[ir.Value, Lengths | Padded] = {}
    biases: dict[tuple[ir.Value, ir.Value], ir.Value] = {}
    misses = []
    fired = 0
    for node in [n for n in model.graph if n.op_type == "Attention" and n.domain == ""]:
        found = match(node)
        if isinstance(found, str):
            misses.append(NearMiss.of(node, found))
            continue
        if found.attention_mask not in known:
            known[found.attention_mask] = (
                lengths(model.graph, found.attention_mask)
                if padding == "right"
                else padded(node, _tokens(model, found), found.attention_mask)
            )
        rows = known[found.attention_mask]
        bias = rows.bias if isinstance(rows, Padded) else None
        if found.table is not None:
            key = (found.attention_mask, found.table)
            if key not in biases:
                biases[key] = _bias(model.graph, node, found, _tokens(model, found), bias)
            bias = biases[key]
        rewrite(found, rows.lengths if isinstance(rows, Padded) else rows, bias)
        fired += 1
    if padding == "right":
        fired += _guard(model.graph, {rows.tokens for rows in known.values() if isinstance(rows, Lengths)})
    return Outcome.of(fired, misses)


def _guard(graph: ir.Graph, ours: set[ir.Value]) -> int:
    """Let the GroupQueryAttention of others refuse what it would get silently wrong; at how many nodes."""
    mask = next((value for value in graph.inputs if value.name == "attention_mask"), None)
    others = [node for node in graph if _counts_unguarded(node) and node.inputs[5] not in ours]
    if mask is None or not others:
        return 0
    zeros = guard(graph, mask)
    safe: dict[ir.Value, ir.Value] = {}
    for node in others:
        tokens = node.inputs[5]
        assert tokens is not None
        if tokens not in safe:
            add = make("Add", [tokens, zeros], f"{tokens.name}.guarded")
            graph.insert_before(node, add)
            safe[tokens] = add.outputs[0]
        node.replace_input_with(5, safe[tokens])
    return len(others)


def _counts_unguarded(node: ir.Node) -> bool:
    """Whether a GroupQueryAttention knows of padding by the lengths of rows alone, and no node refuses left padding."""
    if node.op_type != "GroupQueryAttention" or node.domain != MICROSOFT:
        return False
    _, _, _, _, _, tokens, *rest = node.inputs
    if tokens is None or (len(rest) > 4 and rest[4] is not None):  # the fifth is a bias on the scores
        return False
    add = producer(tokens, "Add")
    makers = [value.producer() for value in add.inputs if value is not None] if add is not None else []
    return all(maker is None or maker.name != LEFT_PADDING for maker in makers)


def match(node: ir.Node) -> Match | str:
    """The parts of an Attention that GroupQueryAttention can take over, or why it cannot."""
    inputs = [*node.inputs, None, None, None][:6]
    query, key, value, mask, *past = inputs
    if query is None or key is None or value is None or mask is None:
        return "it has no mask"
    if attribute(node, "is_causal", 0):
        return "is_causal is set"
    if attribute(node, "q_num_heads", 0) == 0:
        return "q, k and v are not [B, S, H·D]"
    if len(node.outputs) > 3 and node.outputs[3].uses():
        return "its scores are used"
    if len(node.inputs) > 6:
        return "it masks its cache by length"
    if past[0] is None or past[0].shape is None or past[0].shape[-1] not in range(8, 4096, 8):
        return "onnxruntime's kernel wants heads of a multiple of 8 channels, and a cache"
    seen = mask_structure(mask)
    if isinstance(seen, str):
        return seen
    rotations = _rotations(query, key, seen.attention_mask)
    if isinstance(rotations, str):
        return rotations
    if rotations and not _rotates_inside(rotations[0]):
        rotations = ()  # they stay in front of it, with the canonical positions
    if rotations:
        query, key = (rotation.inputs[0] for rotation in rotations)
        assert query is not None and key is not None
    return Match(
        node, query, key, value, tuple(past), seen.attention_mask, seen.window, rotations, seen.table
    )


def _rotations(query: ir.Value, key: ir.Value, attention_mask: ir.Value) -> tuple[ir.Node, ...] | str:
    of_query, of_key = producer(query, "RotaryEmbedding"), producer(key, "RotaryEmbedding")
    if of_query is None and of_key is None:
        return ()
    if of_query is None or of_key is None:
        return "only one of q and k is rotated"
    if not (is_private(query) and is_private(key)):
        return "a rotated q or k is used elsewhere"
    if of_query.inputs[1:] != of_key.inputs[1:] or len(of_query.inputs) != 4:
        return "q and k are rotated by different tables or positions"
    for name, default in (("interleaved", 0), ("rotary_embedding_dim", 0)):
        if attribute(of_query, name, default) != attribute(of_key, name, default):
            return f"q and k are rotated with different {name}"
    if positions_of(of_query.inputs[3]) is not attention_mask:
        return "its rotary positions are not counted from its attention mask"
    return of_query, of_key


def _rotates_inside(rotation: ir.Node) -> bool:
    """onnxruntime's kernel wants a multiple of 16 rotated channels in each head."""
    table = rotation.inputs[1]
    return table is not None and table.shape is not None and table.shape[-1] in range(8, 4096, 8)


def _tokens(model: ir.Model, found: Match) -> ir.Value:
    """A value whose second dim is how many tokens there are: the graph's input, so that who runs the graph in pieces
    need not make a query again in order to know."""
    return next((value for value in model.graph.inputs if value.name == "input_ids"), found.query)


def _bias(
    graph: ir.Graph, node: ir.Node, found: Match, tokens: ir.Value, padding: ir.Value | None
) -> ir.Value:
    """float32 ``[1, H, S, T]`` of the places in a row, in front of a node; ``[B, H, S, T]`` with the padding's."""
    assert found.table is not None
    emit = Emitter({})
    bias = Control(emit, tokens, found.attention_mask).bias(found.table, by_place=True)
    bias = emit.op("Unsqueeze", [bias, emit.ints("axis_0", [0])], name=f"{bias.name}.batch")
    if padding is not None:
        bias = emit.op("Add", [bias, padding], name=f"{bias.name}.padded")
    splice(graph, emit, before=node)
    return bias


def rewrite(found: Match, rows: Lengths, bias: ir.Value | None) -> None:
    node = found.node
    attributes = {
        "num_heads": attribute(node, "q_num_heads", 0),
        "kv_num_heads": attribute(node, "kv_num_heads", 0),
        "do_rotary": 1 if found.rotations else 0,
    }
    for name in ("scale", "softcap"):
        if name in node.attributes:
            attributes[name] = float(attribute(node, name, 0.0))
    if found.window is not None:
        attributes["local_window_size"] = found.window
    tables: tuple[ir.Value | None, ...] = ()
    if found.rotations:
        tables = tuple(found.rotations[0].inputs[1:3])
        attributes["rotary_interleaved"] = attribute(found.rotations[0], "interleaved", 0)
    if bias is not None:
        # Where it tells of padding, rotated by place, padding counted: a row's distances are the same, and the kernel
        # rotates a single token by its place whatever positions it is given.
        tables = (*(tables or (None, None)), None, bias)
    fused = make(
        "GroupQueryAttention",
        [found.query, found.key, found.value, *found.past, rows.tokens, rows.total, *tables],
        str(node.name),
        domain=MICROSOFT,
        outputs=3,
        role=role_of(node),
        **attributes,
    )
    replace(node, [node, *found.rotations], [fused], list(zip(node.outputs[:3], fused.outputs, strict=False)))
